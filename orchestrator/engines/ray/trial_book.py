"""Connects Ray Tune to the trial queue: Tune takes trials from it, and its results end up in our rows."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from orchestrator.engines.interfaces import Search
from orchestrator.engines.ray.generations import COPY_STEPS, Generation, newest_generation
from orchestrator.engines.ray.pickling import NotPickled
from orchestrator.engines.ray.trainable import OUTCOME, REPORT
from orchestrator.engines.ray.trial_resources import Share
from orchestrator.engines.trial_queue import StartedTrial, TrialQueue
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Point
from trainers.config import EpochReport, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

_LONGEST_STOP_S = 60.0
_ACTIVE = (Trial.RUNNING, Trial.PENDING)


@dataclass(kw_only=True)
class LiveTrial:
    """A trial that Tune is running or has scheduled."""

    number: int
    tune_trial: Trial
    reporter: Reporter
    curve: dict[int, EpochReport]


class BookClosedError(BaseException):
    """Raised in Tune's thread if the search has ended without waiting for it.

    It is not an `Exception`, because Tune would catch that, clean up, and wait for Ray.
    """


class TrialBook(NotPickled):
    """The trials that Ray Tune holds, by Tune's id; returns their results to the queue.

    Tune runs in a separate thread. If Ray dies, that thread is left behind, and `close` stops it from writing.

    Args:
        search: The search.
        queue: Its trials.
        describe: Makes Tune's configuration of a trial and its task.
        scheduler: Name of the scheduler, for reasons and details.
    """

    def __init__(
        self,
        search: Search,
        queue: TrialQueue,
        *,
        describe: Callable[[TrialRecord, Task], dict[str, Any]],
        scheduler: str | None,
    ) -> None:
        self.queue = queue
        self._search = search
        self._describe = describe
        self._scheduler = scheduler
        self._lock = threading.RLock()
        self._is_closed = False
        self.live: dict[str, LiveTrial] = {}
        """Trials that Tune holds, by Tune's id."""
        self.error: Exception | None = None
        """The first error in a callback. Tune would only log it; the engine raises it after Tune has ended."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the lock for Tune's thread, which must not wait for Ray inside.

        Raises:
            BookClosedError: The book is closed.
        """
        with self._lock:
            if self._is_closed:
                raise BookClosedError
            yield

    def close(self) -> None:
        """Stop Tune's thread from writing."""
        with self._lock:
            self._is_closed = True

    @property
    def num_active(self) -> int:
        """Number of trials that are running or about to run."""
        return sum(live.tune_trial.status in _ACTIVE for live in self.live.values())

    @property
    def is_finished(self) -> bool:
        """Whether no further trial will start, unless a running one is lost."""
        return self.error is not None or self.queue.is_finished

    def start(self) -> tuple[StartedTrial, dict[str, Any]] | None:
        """The next trial with Tune's configuration of it; `None` if none can start now."""
        started = self.queue.start()
        return None if started is None else (started, self._describe(started.record, started.task))

    def report(self, live: LiveTrial, report: EpochReport) -> None:
        """Take the report of an epoch; it replaces reports of later epochs, which other weights had."""
        live.curve = {epoch: known for epoch, known in live.curve.items() if epoch < report.epoch}
        live.curve[report.epoch] = report
        live.reporter.report(report)

    def finish(self, live: LiveTrial, outcome: TaskOutcome) -> None:
        """Take the outcome of a trial, with the copies of other trials that it made."""
        steps = Generation.model_validate(live.tune_trial.config["generation"]).model_dump(mode="json")["steps"]
        if steps:
            outcome = outcome.model_copy(update={"details": {**outcome.details, COPY_STEPS: steps}})
        self.queue.finish(live.number, outcome)
        self.queue.settle()

    def cut_short(self, live: LiveTrial) -> None:
        """Take a trial that Tune ended, either on its scheduler's decision or because of a stop request."""
        curve = [live.curve[epoch] for epoch in sorted(live.curve)]
        if self.queue.is_stopped or not curve:
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
        metric = self._search.scheduled_by.metric
        value = curve[-1].as_result()[metric]
        reason = f"{self._scheduler} stopped it at epoch {rung} of {self._search.epochs}, with {metric} {value:.4g}"
        outcome = cut_short(task, curve, image_task, state="stopped")
        details = {**outcome.details, "scheduler": self._scheduler, "rung": rung}
        self.finish(live, outcome.model_copy(update={"reason": reason, "details": details}))

    def lose(self, live: LiveTrial, reason: str) -> None:
        """Note that a trial's worker died."""
        self.queue.lose(live.number, reason)

    def drop_live(self) -> None:
        """Take back the trials that Tune did not finish: they wait if the study stops, otherwise they start again."""
        for live in self.live.values():
            if self.queue.is_stopped:
                self.finish(live, TaskOutcome(state="interrupted"))
            else:
                self.lose(live, "Ray Tune gave it up")
        self.live.clear()


class TrialSource(NotPickled, SearchAlgorithm):
    """Hands trials to Tune. It is not a `Searcher`: Tune's population-based schedulers refuse to run with one.

    Args:
        book: The trials.
        share: Gives a task's share of a machine.
        room: Gives the number of workers with such a share that may run at a time.
    """

    def __init__(self, book: TrialBook, *, share: Callable[[Task], Share], room: Callable[[Share], int]) -> None:
        self._book = book
        self._share = share
        self._room = room
        self._latest: Share | None = None
        self._spec: Mapping[str, Any] = {}

    @property
    def total_samples(self) -> int:
        return self._book.queue.num_trials

    def add_configurations(self, experiments: Any) -> None:
        self._spec = experiments[0].spec

    def is_finished(self) -> bool:
        return self._finished or self._book.is_finished

    def next_trial(self) -> Trial | None:
        # One more than fits: it takes over the process of a finished trial, which Tune would otherwise end.
        if self.is_finished():
            return None
        try:
            if self._latest is not None and self._book.num_active > self._room(self._latest):
                return None
            with self._book.opened():
                found = self._book.start()
            if found is None:
                return None
            started, config = found
            self._latest = share = self._share(TrainTask.model_validate_json(config["task"]))
            self._room(share)  # raises if no node is large enough; Tune would wait forever
        except Exception as error:  # the engine raises it
            self._book.error = error
            return None
        trial = Trial(
            self._spec["run"],
            config=config,
            trial_id=uuid.uuid4().hex[:12],
            experiment_tag=f"trial-{started.record.number}",
            placement_group_factory=tune.PlacementGroupFactory(share.bundles),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None, checkpoint_at_end=False),
            storage=self._spec["storage"],
        )
        live = LiveTrial(number=started.record.number, tune_trial=trial, reporter=started.reporter, curve={})
        with self._book.opened():
            self._book.live[trial.trial_id] = live
        return trial


class TrialRecorder(NotPickled, tune.Callback):
    """Writes Tune's results into our rows as they arrive."""

    def __init__(self, book: TrialBook) -> None:
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
            except Exception as error:  # Tune would log it and continue; the engine raises it
                self._book.error = error


def _error_of(trial: Trial) -> str:
    """The last line of Tune's report on a trial's failure."""
    file = Path(trial.error_file) if trial.error_file else None
    lines = file.read_text(encoding="utf-8").strip().splitlines() if file and file.exists() else []
    return lines[-1][:300] if lines else "its worker died"


class SearchStopper(NotPickled, tune.Stopper):
    """Ends Tune's run: at once after an error, or when no trial is running after a stop request.

    Args:
        book: The trials.
        stop_file: Written after a stop request; running trials look for it.
    """

    def __init__(self, book: TrialBook, stop_file: Path) -> None:
        self._book = book
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
        if not self._book.queue.is_stopped:
            return False
        if self._since is None:
            self._since = time.monotonic()
            self._stop_file.touch()
        is_running = any(live.tune_trial.status == Trial.RUNNING for live in self._book.live.values())
        return not is_running or time.monotonic() - self._since > _LONGEST_STOP_S


def tune_config(
    search: Search,
    record: TrialRecord,
    task: Task,
    *,
    run_task: str,
    stop_file: Path,
    silent_minutes: float | None,
    num_ranks: int,
) -> dict[str, Any]:
    """Tune's configuration of a trial, as plain data. A trial that has copied another continues from its copy."""
    assert isinstance(task, TrainTask)
    folder = task.folder
    newest = newest_generation(folder)
    generation = Generation(point=record.point)
    if newest is not None:
        task = task_at(search, record, newest[1].point).model_copy(update={"folder": newest[0], "fence": task.fence})
        generation = newest[1]
    return {
        "number": record.number,
        "metric": search.scheduled_by.metric,
        "folder": str(folder),
        "task": task.model_dump_json(),
        "generation": generation.model_dump(mode="json"),
        "weights": search.weights_of(record.point),
        "run_task": run_task,
        "stop_file": str(stop_file),
        "silent_minutes": silent_minutes,
        "num_ranks": num_ranks,
    }


def task_at(search: Search, record: TrialRecord, point: Point) -> TrainTask:
    """A trial's task with another point."""
    task = search.make_task(record.model_copy(update={"point": point}))
    assert isinstance(task, TrainTask)
    return task
