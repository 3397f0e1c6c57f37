"""Engine `optuna`: asks the suggester, lets the pool evaluate, and tells."""

from collections import deque

from orchestrator.engines.interfaces import Control, Ledger, Lost, Pool, Search, task_of_attempt
from orchestrator.store.records import FINISHED, TrialRecord


class OptunaEngine:
    """Ask, evaluate, tell; several trials at once where the pool has room.

    The suggester is asked with what is known at the time: it does not wait for the trials that run, but knows of them.
    """

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """Run a search from wherever its rows say that it stands."""
        trials = {trial.number: trial for trial in ledger.trials()}
        waiting: deque[TrialRecord] = deque()
        for trial in trials.values():
            if trial.state in FINISHED:
                search.suggester.tell(trial)
            else:
                search.suggester.expect(trial)
                waiting.append(trial)
        if search.epochs is not None and not control.should_stop():
            pool.prepare(search.sizes())
        while True:
            while pool.has_room() and not control.should_stop():
                if waiting:
                    trial = ledger.resume(waiting.popleft())
                elif len(trials) < search.num_trials:
                    suggestion = search.suggester.ask(len(trials))
                    if suggestion is None:
                        break  # nothing new now; asked again after the next outcome
                    trial = ledger.begin(len(trials), suggestion)
                else:
                    break
                trials[trial.number] = trial
                if trial.state in FINISHED:
                    search.suggester.tell(trial)
                    continue
                task = task_of_attempt(search, trial, ledger.attempt(trial))
                pool.submit(trial.number, task, ledger.reporter(trial))
            ledger.settle()
            if not pool.is_busy():
                return [trials[number] for number in sorted(trials)]
            number, outcome = pool.wait()
            if isinstance(outcome, Lost):
                trials[number] = ledger.lose(trials[number], outcome.reason)
                waiting.append(trials[number])
                continue
            trials[number] = ledger.finish(trials[number], outcome)
            if trials[number].state in FINISHED:
                search.suggester.tell(trials[number])
