"""The trials of one search as a state machine that every engine drives: ask, begin, resume, finish, lose.

not asked --begin--> running --finish--> complete, stopped or failed (the suggester learns the result)
                     running --finish (interrupted)--> waiting, for the next execution
                     running --lose--> waiting, for the next `start`
waiting --resume--> running, or failed if it has killed its process too often
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.engines.interfaces import Control, Ledger, Search, task_of_attempt
from orchestrator.store.records import FINISHED, TrialRecord
from trainers.config import Task, TaskOutcome
from trainers.training.reporting import Reporter


class StartedTrial(NamedTuple):
    """A trial that has just started."""

    record: TrialRecord
    task: Task
    reporter: Reporter


class TrialQueue:
    """Decides which trial runs next, and writes every change to the ledger.

    A suggestion uses the results known at the time: the suggester knows the running trials, but does not wait for them.

    Args:
        search: The search; its suggester learns all finished trials and expects the unfinished ones.
        ledger: Records the trials. Its rows determine the state of the search.
        control: After a stop request, no further trial starts.
    """

    def __init__(self, search: Search, ledger: Ledger, control: Control) -> None:
        self._search = search
        self._ledger = ledger
        self._control = control
        self._trials: dict[int, TrialRecord] = {}
        self._waiting: deque[TrialRecord] = deque()
        self._running: set[int] = set()
        self._is_exhausted = False
        for trial in ledger.trials():
            self._trials[trial.number] = trial
            if trial.state in FINISHED:
                search.suggester.tell(trial)
            else:
                search.suggester.expect(trial)
                self._waiting.append(trial)

    def trials(self) -> list[TrialRecord]:
        """All trials so far, by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def record(self, number: int) -> TrialRecord:
        """The trial with this number."""
        return self._trials[number]

    @property
    def num_trials(self) -> int:
        """Number of trials so far."""
        return len(self._trials)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop was requested: running trials should end, and no new trial starts."""
        return self._control.should_stop()

    @property
    def is_finished(self) -> bool:
        """Whether no further trial will start. Losing a running trial makes it false again."""
        if self._control.should_stop():
            return True
        all_asked = self._is_exhausted or len(self._trials) >= self._search.num_trials
        return all_asked and not self._waiting

    def start(self) -> StartedTrial | None:
        """Start the next trial, a waiting one if there is one, otherwise a new one, and write it as running.

        Returns:
            `None` if no trial can start now. Unless `is_finished`, one may start after a running trial has ended.
        """
        while not self.is_finished:
            if self._waiting:
                record = self._ledger.resume(self._waiting.popleft())
            else:
                suggestion = self._search.suggester.ask(len(self._trials))
                if suggestion is None:
                    self._is_exhausted = not self._running
                    return None
                record = self._ledger.begin(len(self._trials), suggestion)
            self._trials[record.number] = record
            if record.state not in FINISHED:
                self._running.add(record.number)
                task = task_of_attempt(self._search, record, self._ledger.attempt(record))
                return StartedTrial(record, task, self._ledger.reporter(record))
            self._search.suggester.tell(record)
        return None

    def finish(self, number: int, outcome: TaskOutcome) -> None:
        """Take the outcome of a running trial. An interrupted one waits for the next execution of the study."""
        record = self._ledger.finish(self._trials[number], outcome)
        self._running.discard(number)
        self._trials[number] = record
        if record.state in FINISHED:
            self._search.suggester.tell(record)

    def lose(self, number: int, reason: str) -> None:
        """Note that the worker of a running trial died. The trial joins the end of the queue of waiting trials."""
        record = self._ledger.lose(self._trials[number], reason)
        self._running.discard(number)
        self._trials[number] = record
        self._waiting.append(record)

    def settle(self) -> None:
        """Write outcomes that the ledger has deferred; called before waiting for running trials."""
        self._ledger.settle()


def num_left(search: Search, trials: Sequence[TrialRecord]) -> int:
    """Maximum number of trials of a search that have not ended, if it has `trials` so far."""
    return max(search.num_trials - len(trials), 0) + sum(trial.state not in FINISHED for trial in trials)
