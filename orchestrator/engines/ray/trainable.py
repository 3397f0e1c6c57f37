"""A trial as Ray Tune runs it: the trial worker in a thread, one report for each step that Tune asks for."""

import contextlib
import faulthandler
import json
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

from orchestrator.engines.ray.generations import Generation, begin_generation
from orchestrator.engines.ray.worker import UNRESPONSIVE, load_function
from trainers.config import EpochReport, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

EPOCH = "epoch"
REPORT, OUTCOME = "report", "outcome"
"""Entries of a result: an `EpochReport` or a `TaskOutcome`, as JSON."""
_LOOK_S = 0.5
"""Time between two looks for the file that says stop."""
_WIND_S, _GRACE_S = 1.0, 5.0
"""Time between two windings of the alarm of a process that hangs as a whole, and how much later it goes off."""


class SteppedTask(Reporter):
    """A task in a thread of its own that waits after each report until the next one is asked for.

    Args:
        run_task: The trial worker.
        task: What it does.
        skip: Reports up to this epoch were told before; they come again and are left out.
        stop_file: The task is asked to end once this file is there, or its folder gone: so is then the driver.
        silent_minutes: It fails when it gives no sign of life for so long. Its thread stays, so the process must end;
            where it holds up every other thread too, the process ends by itself.
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
        self._stop_file = stop_file
        self._has_folder = False
        self._looked_at = 0.0
        self._silent_minutes = silent_minutes
        self._last_sign = 0.0
        self._wound_at = 0.0
        self.hangs = False
        self._is_ending = False
        self._told: queue.SimpleQueue[EpochReport | TaskOutcome | BaseException] = queue.SimpleQueue()
        self._may_go_on = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)

    def advance(self) -> EpochReport | TaskOutcome:
        """Let it go on to its next report, or to its end."""
        if not self._thread.is_alive():
            self._thread.start()
        self._give_sign()
        self._may_go_on.release()
        told = self._wait()
        self._unwind()
        if isinstance(told, BaseException):
            raise told
        return told

    def _wait(self) -> EpochReport | TaskOutcome | BaseException:
        while (left_s := self._left_s()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._told.get(timeout=None if math.isinf(left_s) else left_s)
        self.hangs = True
        return TaskOutcome(state="failed", error="silent", reason=UNRESPONSIVE.format(minutes=self._silent_minutes))

    def end(self) -> None:
        """Ask it to end, and wait for that: between two batches, unless it hangs."""
        self._is_ending = True
        if self._thread.is_alive():
            self._give_sign()
            self._may_go_on.release()
            while self._thread.is_alive() and (left_s := self._left_s()) > 0:
                self._thread.join(None if math.isinf(left_s) else left_s)
            self.hangs = self._thread.is_alive()
        self._unwind()

    def report(self, report: EpochReport) -> None:
        """For the task: tell, then wait."""
        self._give_sign()
        if report.epoch <= self._skip:
            return
        self._told.put(report)
        self._may_go_on.acquire()

    def should_stop(self) -> bool:
        """For the task: whether to end now."""
        now = self._give_sign()
        if not self._is_ending and now - self._looked_at > _LOOK_S:
            self._looked_at = now
            self._is_ending = self._is_told_to_stop()
        return self._is_ending

    def _give_sign(self) -> float:
        self._last_sign = now = time.monotonic()
        if self._silent_minutes is not None and now - self._wound_at > _WIND_S:
            self._wound_at = now
            limit_s = 60 * self._silent_minutes + _WIND_S + _GRACE_S
            faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
        return now

    def _left_s(self) -> float:
        """How long it may still be silent."""
        if self._silent_minutes is None:
            return math.inf
        return 60 * self._silent_minutes - (time.monotonic() - self._last_sign)

    def _unwind(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._wound_at = 0.0

    def _is_told_to_stop(self) -> bool:
        is_there = self._stop_file.parent.exists()  # on a network file system it may come late
        has_gone = self._has_folder and not is_there
        self._has_folder = is_there
        return has_gone or self._stop_file.exists()

    def _run(self) -> None:
        self._may_go_on.acquire()
        try:
            self._told.put(TaskOutcome(state="interrupted") if self._is_ending else self._run_task(self._task, self))
        except BaseException as error:  # `advance` raises it where Tune sees it
            self._told.put(error)


class TrialTrainable(tune.Trainable):
    """Tune's view of a trial. The process stays for many trials: `reset_config` begins the next one."""

    _number: int
    _metric: str
    _task: TrainTask
    _folder: Path
    _generation: Generation
    _run_task: Callable[[Task, Reporter], TaskOutcome]
    _stop_file: Path
    _silent_minutes: float | None
    _epoch: int
    """Newest one that was reported."""
    _last: dict[str, Any]
    _stepped: SteppedTask

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        told = self._stepped.advance()
        result: dict[str, Any] = {}
        if isinstance(told, EpochReport):
            self._epoch = told.epoch
            self._last = told.model_dump(mode="json")
            result = {REPORT: json.dumps(self._last)}
            if told.epoch < self._task.configuration.epochs:
                return {**self._last, **result}
            told = self._stepped.advance()  # there is nothing left to decide
            assert isinstance(told, TaskOutcome)
        missing = {EPOCH: self._epoch, self._metric: float("nan")}
        return {**missing, **self._last, **result, OUTCOME: told.model_dump_json(), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002 - Tune's signature
        """Where the trial's own checkpoints are; they were written before the report."""
        return {"number": self._number, EPOCH: self._epoch, "folder": str(self._task.folder)}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after a pause, or with another trial's weights."""
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
        self._make_task(skip=0)  # the curve of a trial is that of its weights

    def cleanup(self) -> None:
        if not self._stepped.hangs:
            self._stepped.end()
        if self._stepped.hangs:
            os._exit(1)  # a trial that was to follow in this process begins again in another

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = config["number"]
        self._metric = config["metric"]
        self._task = TrainTask.model_validate_json(config["task"])
        self._folder = Path(config["folder"])
        self._generation = Generation.model_validate(config["generation"])
        self._run_task = load_function(config["run_task"])
        self._stop_file = Path(config["stop_file"])
        self._silent_minutes = config["silent_minutes"]
        self._epoch = 0
        self._last = {}
        self._make_task(skip=0)

    def _make_task(self, *, skip: int) -> None:
        self._epoch = max(self._epoch, skip)
        self._stepped = SteppedTask(
            self._run_task,
            self._task,
            skip=skip,
            stop_file=self._stop_file,
            silent_minutes=self._silent_minutes,
        )
