"""A trial as Ray Tune runs it: the trial worker in a thread, with one report for each step of Tune."""

import contextlib
import faulthandler
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.ray.generations import Generation, begin_generation
from orchestrator.engines.ray.ranks import run_with_ranks
from orchestrator.engines.ray.worker import UNRESPONSIVE, load_function
from trainers.config import EpochReport, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

EPOCH = "epoch"
REPORT, OUTCOME = "report", "outcome"
"""Entries of a result: an `EpochReport` or a `TaskOutcome`, as JSON."""
_STOP_FILE_CHECK_S = 0.5
"""Time between two checks for the stop file."""
_RENEW_S, _GRACE_S = 1.0, 5.0
"""Time between two renewals of the process's alarm, and its delay beyond the limit."""


class StopFile:
    """Detects whether the driver has asked the trials of this process to end.

    Args:
        path: A file that exists once trials should end. They should also end if its folder is gone, because the driver
            removes the folder when it ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._had_folder = False
        self._checked_at = 0.0
        self._is_set = False

    def is_set(self, now: float) -> bool:
        """Check the file, unless it was checked very recently."""
        if not self._is_set and now - self._checked_at > _STOP_FILE_CHECK_S:
            self._checked_at = now
            has_folder = self._path.parent.exists()  # may appear late on a network file system
            self._is_set = (self._had_folder and not has_folder) or self._path.exists()
            self._had_folder = has_folder
        return self._is_set


class ProgressLimit:
    """The time that a training may take without progress.

    Args:
        minutes: The limit; `None` means no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._last_progress = 0.0
        self._renewed_at = 0.0

    def note_progress(self) -> float:
        """Reset the limit, and return the current time. If the process stays blocked long past the limit, it ends."""
        self._last_progress = now = time.monotonic()
        if self.minutes is not None and now - self._renewed_at > _RENEW_S:
            self._renewed_at = now
            limit_s = 60 * self.minutes + _RENEW_S + _GRACE_S
            faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
        return now

    def left_s(self) -> float:
        """Remaining time in seconds."""
        if self.minutes is None:
            return math.inf
        return 60 * self.minutes - (time.monotonic() - self._last_progress)

    def cancel(self) -> None:
        """Disable the limit while no training runs."""
        faulthandler.cancel_dump_traceback_later()
        self._renewed_at = 0.0


class SteppedTask(Reporter):
    """Runs a task in a thread that waits after each report until the next one is requested.

    Args:
        run_task: The trial worker.
        task: The task.
        skip: Reports up to this epoch are known and skipped.
        stop_file: Path of the file that asks the task to end.
        silent_minutes: Time without progress after which the task fails. Its thread remains, so the process must end;
            if the task blocks all threads, the process ends by itself.
    """

    def __init__(
        self,
        run_task: Callable[[Task, Reporter], TaskOutcome],
        task: Task,
        *,
        skip: int,
        stop_file: Path,
        silent_minutes: float | None = None,
    ) -> None:
        self._run_task = run_task
        self._task = task
        self._skip = skip
        self._stop_file = StopFile(stop_file)
        self._limit = ProgressLimit(silent_minutes)
        self._is_ending = False
        self.hangs = False
        self._results: queue.SimpleQueue[EpochReport | TaskOutcome | BaseException] = queue.SimpleQueue()
        self._may_continue = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)

    def advance(self) -> EpochReport | TaskOutcome:
        """Run the task to its next report, or to its end."""
        if not self._thread.is_alive():
            self._thread.start()
        self._limit.note_progress()
        self._may_continue.release()
        result = self._wait()
        self._limit.cancel()
        if isinstance(result, BaseException):
            raise result
        return result

    def _wait(self) -> EpochReport | TaskOutcome | BaseException:
        while (left_s := self._limit.left_s()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._results.get(timeout=None if math.isinf(left_s) else left_s)
        self.hangs = True
        return TaskOutcome(state="failed", error="silent", reason=UNRESPONSIVE.format(minutes=self._limit.minutes))

    def end(self) -> None:
        """Ask the task to end, and wait until it ends between two batches or is found to hang."""
        self._is_ending = True
        if self._thread.is_alive():
            self._limit.note_progress()
            self._may_continue.release()
            while self._thread.is_alive() and (left_s := self._limit.left_s()) > 0:
                self._thread.join(None if math.isinf(left_s) else left_s)
            self.hangs = self._thread.is_alive()
        self._limit.cancel()

    def report(self, report: EpochReport) -> None:
        """Called by the task: hand over a report, then wait."""
        self._limit.note_progress()
        if report.epoch <= self._skip:
            return
        self._results.put(report)
        self._may_continue.acquire()

    def should_stop(self) -> bool:
        """Called by the task: whether it should end now."""
        now = self._limit.note_progress()
        self._is_ending = self._is_ending or self._stop_file.is_set(now)
        return self._is_ending

    def _run(self) -> None:
        self._may_continue.acquire()
        try:
            self._results.put(TaskOutcome(state="interrupted") if self._is_ending else self._run_task(self._task, self))
        except BaseException as error:  # `advance` raises it in Tune's thread
            self._results.put(error)


class RankDiedError(RuntimeError):
    """Another process of a training on several GPUs died; Tune counts it as the death of the trial's worker."""


class TrialTrainable(tune.Trainable):
    """A trial for Tune. Its process runs many trials: `reset_config` begins the next one."""

    _number: int
    _metric: str
    _task: TrainTask
    _folder: Path
    _generation: Generation
    _run_task: Callable[[Task, Reporter], TaskOutcome]
    _stop_file: Path
    _silent_minutes: float | None
    _num_ranks: int
    _ends_process: bool
    """Whether a rank of this process may wait for another one that is lost."""
    _epoch: int
    """Newest reported epoch."""
    _last: dict[str, Any]
    _stepped: SteppedTask

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        found = self._stepped.advance()
        result: dict[str, Any] = {}
        if isinstance(found, EpochReport):
            self._epoch = found.epoch
            self._last = found.as_result()
            result = {REPORT: found.model_dump_json()}
            if found.epoch < self._task.configuration.epochs:
                return {**self._last, **result}
            found = self._stepped.advance()  # after its last epoch, a scheduler has nothing to decide
            assert isinstance(found, TaskOutcome)
        missing = {EPOCH: self._epoch, self._metric: float("nan")}
        return {**missing, **self._last, **result, OUTCOME: found.model_dump_json(), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002 - Tune's signature
        """The location of the trial's checkpoints, which were written before the report."""
        return {"number": self._number, EPOCH: self._epoch, "folder": str(self._task.folder)}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue after a pause, or with another trial's weights."""
        if checkpoint["number"] == self._number:
            self._make_task(skip=checkpoint[EPOCH])
            return
        from trainers.training.fencing import check  # imports torch

        check(self._task.fence)
        folder = begin_generation(
            self._folder,
            self._generation,
            source=Path(checkpoint["folder"]),
            epoch=checkpoint[EPOCH],
            configuration=self._task.configuration,
        )
        self._task = self._task.model_copy(update={"folder": folder})
        self._make_task(skip=0)  # a trial's curve belongs to its weights

    def cleanup(self) -> None:
        if not self._stepped.hangs:
            self._stepped.end()
        if self._stepped.hangs or self._ends_process:
            os._exit(1)  # a trial that was to follow in this process starts in another one, as after a lost worker

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = config["number"]
        self._metric = config["metric"]
        self._task = TrainTask.model_validate_json(config["task"])
        self._folder = Path(config["folder"])
        self._generation = Generation.model_validate(config["generation"])
        self._run_task = load_function(config["run_task"])
        self._stop_file = Path(config["stop_file"])
        self._silent_minutes = config["silent_minutes"]
        self._num_ranks = config["num_ranks"]
        self._ends_process = False
        self._epoch = 0
        self._last = {}
        self._make_task(skip=0)

    def _run_on_all_ranks(self, task: Task, reporter: Reporter) -> TaskOutcome:
        result = run_with_ranks(
            self._run_task, task, reporter, num_ranks=self._num_ranks, silent_minutes=self._silent_minutes
        )
        self._ends_process = result.ends_process
        if isinstance(result.outcome, Lost):
            raise RankDiedError(result.outcome.reason)
        return result.outcome

    def _make_task(self, *, skip: int) -> None:
        self._epoch = max(self._epoch, skip)
        self._stepped = SteppedTask(
            self._run_on_all_ranks,
            self._task,
            skip=skip,
            stop_file=self._stop_file,
            silent_minutes=self._silent_minutes,
        )
