"""Between Ray Tune and our rows: which trial Tune runs next, and what is written down of what it reports."""

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from orchestrator.engines.interfaces import Control, Ledger, Reporter, Search, task_of_attempt
from orchestrator.engines.ray.generations import Generation, newest_generation
from orchestrator.engines.ray.pickling import NotKept
from orchestrator.engines.ray.trainable import OUTCOME, REPORT
from orchestrator.engines.ray.trial_resources import Share
from orchestrator.store.records import FINISHED, AttemptRecord, TrialRecord
from search_spaces.dimensions import Point
from trainers.config import EpochReport, Task, TaskOutcome, TrainTask

_LONGEST_STOP_S = 60.0
_ACTIVE = (Trial.RUNNING, Trial.PENDING)


@dataclass(kw_only=True)
class LiveTrial:
    """A trial in Tune's hands."""

    record: TrialRecord
    tune_trial: Trial
    reporter: Reporter
    curve: dict[int, EpochReport]


class AbandonedError(BaseException):
    """Nobody waits any more for the Tune that asks. It is no `Exception`: Tune would clean up, and wait for Ray."""


class Book(NotKept):
    """The trials of one search: asked for, in Tune's hands, ended.

    Tune runs in a thread of its own, which is left behind where Ray has died: then the book is closed to it.

    Args:
        search: What is searched.
        ledger: Where everything is written.
        control: Says stop.
        describe: The task of an attempt at a trial as Tune's configuration of it.
        scheduler: Name of the scheduler, for reasons and details.
    """

    def __init__(
        self,
        search: Search,
        ledger: Ledger,
        control: Control,
        *,
        describe: Callable[[TrialRecord, AttemptRecord], dict[str, Any]],
        scheduler: str | None,
    ) -> None:
        self._search = search
        self._ledger = ledger
        self._control = control
        self._describe = describe
        self._scheduler = scheduler
        self._waiting: deque[TrialRecord] = deque()
        self._is_exhausted = False
        self._lock = threading.RLock()
        self._is_closed = False
        self.trials: dict[int, TrialRecord] = {}
        self.live: dict[str, LiveTrial] = {}
        self.error: Exception | None = None
        """What went wrong in here. Tune would swallow it; the engine raises it once Tune has ended."""
        for trial in ledger.trials():
            self.trials[trial.number] = trial
            if trial.state in FINISHED:
                search.suggester.tell(trial)
            else:
                search.suggester.expect(trial)
                self._waiting.append(trial)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Whatever Tune's thread writes into the book it writes in here, without waiting for Ray meanwhile.

        Raises:
            AbandonedError: The book is closed.
        """
        with self._lock:
            if self._is_closed:
                raise AbandonedError
            yield

    def close(self) -> None:
        """Let Tune's thread write nothing more."""
        with self._lock:
            self._is_closed = True

    @property
    def num_active(self) -> int:
        """Trials that run or are about to."""
        return sum(live.tune_trial.status in _ACTIVE for live in self.live.values())

    @property
    def is_finished(self) -> bool:
        """Whether no further trial comes, as things stand: one that loses its worker comes again."""
        if self.error is not None or self._control.should_stop():
            return True
        all_asked = self._is_exhausted or len(self.trials) >= self._search.num_trials
        return all_asked and not self._waiting

    def next_trial(self) -> tuple[TrialRecord, Reporter, dict[str, Any]] | None:
        """The next one to run, written down as running; `None` while there is none."""
        while True:
            if self._waiting:
                record = self._ledger.resume(self._waiting.popleft())
            elif len(self.trials) < self._search.num_trials:
                suggestion = self._search.suggester.ask(len(self.trials))
                if suggestion is None:
                    self._is_exhausted = not self.live
                    return None
                record = self._ledger.begin(len(self.trials), suggestion)
            else:
                return None
            self.trials[record.number] = record
            if record.state not in FINISHED:
                return record, self._ledger.reporter(record), self._describe(record, self._ledger.attempt(record))
            self._search.suggester.tell(record)

    def report(self, live: LiveTrial, report: EpochReport) -> None:
        live.curve = {epoch: known for epoch, known in live.curve.items() if epoch < report.epoch}
        live.curve[report.epoch] = report
        live.reporter.report(report)

    def finish(self, live: LiveTrial, outcome: TaskOutcome) -> None:
        """A trial ended by itself."""
        steps = Generation.model_validate(live.tune_trial.config["generation"]).model_dump(mode="json")["steps"]
        if steps:
            outcome = outcome.model_copy(update={"details": {**outcome.details, "lineage": steps}})
        record = self._ledger.finish(live.record, outcome)
        self._ledger.settle()
        self.trials[record.number] = record
        if record.state in FINISHED:
            self._search.suggester.tell(record)

    def cut_short(self, live: LiveTrial) -> None:
        """Tune ended a trial without asking it: its scheduler did, or the study is being stopped."""
        curve = [live.curve[epoch] for epoch in sorted(live.curve)]
        if self._control.should_stop() or not curve:
            self.finish(live, TaskOutcome(state="interrupted"))
            return
        from trainers.data.images import load_images  # imports torch
        from trainers.training.loop import cut_short

        task = TrainTask.model_validate_json(live.tune_trial.config["task"])
        image_task = load_images(task.configuration.data).task
        rung = curve[-1].epoch
        if rung >= (self._search.epochs or 0):
            self.finish(live, cut_short(task, curve, image_task, state="complete"))
            return
        metric = self._search.objectives[0].metric
        value = curve[-1].model_dump()[metric]
        reason = f"{self._scheduler} stopped it at epoch {rung} of {self._search.epochs}, with {metric} {value:.4g}"
        outcome = cut_short(task, curve, image_task, state="stopped")
        details = {"scheduler": self._scheduler, "rung": rung}
        self.finish(live, outcome.model_copy(update={"reason": reason, "details": details}))

    def lose(self, live: LiveTrial, reason: str) -> None:
        """A trial's worker died; the trial comes again."""
        record = self._ledger.lose(live.record, reason)
        self.trials[record.number] = record
        self._waiting.append(record)

    def drop_live(self) -> None:
        """Tune has ended without a word about these: they wait where the study stops, and come again otherwise."""
        for live in self.live.values():
            if self._control.should_stop():
                self.finish(live, TaskOutcome(state="interrupted"))
            else:
                self.lose(live, "Ray Tune gave it up")
        self.live.clear()


class LedgerSearch(NotKept, SearchAlgorithm):
    """Gives Tune its trials. It is no `Searcher`: Tune's population-based schedulers refuse to run with one.

    Args:
        book: The trials.
        share: What a task's worker gets of its machine.
        room: How many of those fit at once.
    """

    def __init__(self, book: Book, *, share: Callable[[Task], Share], room: Callable[[Share], int]) -> None:
        self._book = book
        self._share = share
        self._room = room
        self._latest: Share | None = None
        self._spec: Mapping[str, Any] = {}

    @property
    def total_samples(self) -> int:
        return len(self._book.trials)

    def add_configurations(self, experiments: Any) -> None:
        self._spec = experiments[0].spec

    def is_finished(self) -> bool:
        return self._finished or self._book.is_finished

    def next_trial(self) -> Trial | None:
        # One more than fits: it takes over the process of a trial that ends, which Tune would end too.
        if self.is_finished():
            return None
        try:
            if self._latest is not None and self._book.num_active > self._room(self._latest):
                return None
            with self._book.opened():
                found = self._book.next_trial()
            if found is None:
                return None
            record, reporter, config = found
            self._latest = share = self._share(TrainTask.model_validate_json(config["task"]))
            self._room(share)  # Tune would wait for ever for a place that is too small
        except Exception as error:  # raised again by the engine, in its own words
            self._book.error = error
            return None
        trial = Trial(
            self._spec["run"],
            config=config,
            trial_id=uuid.uuid4().hex[:12],
            experiment_tag=f"trial-{record.number}",
            placement_group_factory=tune.PlacementGroupFactory([{"CPU": share.num_cpus, "GPU": share.num_gpus}]),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None, checkpoint_at_end=False),
            storage=self._spec["storage"],
        )
        with self._book.opened():
            self._book.live[trial.trial_id] = LiveTrial(record=record, tune_trial=trial, reporter=reporter, curve={})
        return trial


class LedgerCallback(NotKept, tune.Callback):
    """Writes what Tune learns of its trials into our rows, as it comes."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def on_trial_result(self, trial: Trial, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002
        with self._book.opened():
            self._take(trial, result)

    def _take(self, trial: Trial, result: dict[str, Any]) -> None:
        live = self._book.live.get(trial.trial_id)
        if live is None:
            return
        if REPORT in result:
            self._try(self._book.report, live, EpochReport.model_validate_json(result.pop(REPORT)))
        if OUTCOME in result:
            del self._book.live[trial.trial_id]
            self._try(self._book.finish, live, TaskOutcome.model_validate_json(result.pop(OUTCOME)))

    def on_trial_complete(self, trial: Trial, **info: Any) -> None:  # noqa: ARG002
        with self._book.opened():
            live = self._book.live.pop(trial.trial_id, None)
            if live is not None:
                self._try(self._book.cut_short, live)

    def on_trial_error(self, trial: Trial, **info: Any) -> None:  # noqa: ARG002
        with self._book.opened():
            live = self._book.live.pop(trial.trial_id, None)
            if live is not None:
                self._try(self._book.lose, live, _error_of(trial))

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._book.error is None:
            try:
                action(*arguments)
            except Exception as error:  # Tune would write it to a log and go on; the engine raises it
                self._book.error = error


def _error_of(trial: Trial) -> str:
    """The last line of what Tune wrote about a trial's failure."""
    file = Path(trial.error_file) if trial.error_file else None
    lines = file.read_text(encoding="utf-8").strip().splitlines() if file and file.exists() else []
    return lines[-1][:300] if lines else "its worker died"


class StopAll(NotKept, tune.Stopper):
    """Ends the whole of Tune's run: at once after an error, and once the trials have ended where the study stops.

    Args:
        book: The trials.
        control: Says stop.
        stop_file: Made then; running trials look for it.
    """

    def __init__(self, book: Book, control: Control, stop_file: Path) -> None:
        self._book = book
        self._control = control
        self._stop_file = stop_file
        self._since: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Tune's signature
        return False

    def stop_all(self) -> bool:
        with self._book.opened():
            return self._must_stop()

    def _must_stop(self) -> bool:
        if self._book.error is not None:
            return True
        if not self._control.should_stop():
            return False
        if self._since is None:
            self._since = time.monotonic()
            self._stop_file.touch()
        is_running = any(live.tune_trial.status == Trial.RUNNING for live in self._book.live.values())
        return not is_running or time.monotonic() - self._since > _LONGEST_STOP_S


def describe_trial(
    search: Search,
    record: TrialRecord,
    attempt: AttemptRecord,
    *,
    run_task: str,
    stop_file: Path,
    silent_minutes: float | None,
) -> dict[str, Any]:
    """A trial as Tune's configuration: plain data. One that has copied another goes on from where that left it."""
    task = task_of_attempt(search, record, attempt)
    assert isinstance(task, TrainTask)
    folder = task.folder
    newest = newest_generation(folder)
    generation = Generation(point=record.point)
    if newest is not None:
        task = task_at(search, record, newest[1].point).model_copy(update={"folder": newest[0], "fence": task.fence})
        generation = newest[1]
    return {
        "number": record.number,
        "metric": search.objectives[0].metric,
        "folder": str(folder),
        "task": task.model_dump_json(),
        "generation": generation.model_dump(mode="json"),
        "weights": search.weights_of(record.point),
        "run_task": run_task,
        "stop_file": str(stop_file),
        "silent_minutes": silent_minutes,
    }


def task_at(search: Search, record: TrialRecord, point: Point) -> TrainTask:
    """A trial's task with another point."""
    task = search.make_task(record.model_copy(update={"point": point}))
    assert isinstance(task, TrainTask)
    return task
