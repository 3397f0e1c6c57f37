"""What goes wrong in the processes that do a study's tasks on Ray.

Functions with arguments run in Ray's workers, in the place of `trainers.worker.run_task`. Those without are called in
the driver before its command, named to `tests.faults.driver.start`: they choose one of the others.
"""

import contextlib
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.store.records import StageRecord
from tests.faults.ray_processes import HEAD, kill, named
from trainers.config import EpochReport, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter
from trainers.worker import run_task

BATCH_S, LONG_BATCH_S = 0.3, 5.0
"""Pause before each batch of `slow`, and of the later epochs of `slower`."""
LATE_BATCH_S = 0.2
"""And of `late`: slow enough that trials are in the middle of their training when another driver takes over."""
SOON_GIVEN_UP = 2
"""Processes that a trial may lose one after another with `deadly`."""
_MIB = 1 << 20


def use_slow() -> None:
    _use("slow")


def use_slower() -> None:
    _use("slower")


def use_slow_impatiently() -> None:
    """And a head that is away is soon given up."""
    from orchestrator.engines.ray import health as ray_health

    ray_health.AWAY_S = 2.0
    _use("slow")


def use_killed_head() -> None:
    """And the head of the driver's own Ray is killed as soon as a fourth training is written down as begun."""
    from orchestrator.store.repository import Store

    begin_trial = Store.begin_trial

    def begin(self: Store, stage: StageRecord, *arguments: Any, **named_ones: Any) -> Any:
        begun = begin_trial(self, stage, *arguments, **named_ones)
        if (stage.name, named_ones["number"]) == ("train", 3):
            kill(named(os.getpid(), HEAD))
        return begun

    Store.begin_trial = begin
    _use("slow")


def use_killed_once() -> None:
    _use("killed_once")


def use_deadly() -> None:
    """And a trial that loses its process again and again is soon given up."""
    from orchestrator.store import repository

    repository.MAX_LOST_ATTEMPTS = SOON_GIVEN_UP
    _use("deadly")


def use_late() -> None:
    _use("late")


def use_little_memory() -> None:
    _use("little_memory")


def slow(task: Task, reporter: Reporter) -> TaskOutcome:
    """Training takes long enough for something to happen meanwhile, and who trains what is written down."""
    return _slowly(task, reporter, BATCH_S)


def slower(task: Task, reporter: Reporter) -> TaskOutcome:
    """The same, with trials that last much longer than the start of a worker, until there is a file `hurry`."""

    def pause(epoch: int, _: int) -> None:
        until = time.monotonic() + (BATCH_S if epoch == 1 else LONG_BATCH_S)
        while time.monotonic() < until and not _beside(task, "hurry").exists():
            time.sleep(0.02)

    return run_task(task, _Witness(task, reporter, pause) if _trains(task) else reporter)


def killed_once(task: Task, reporter: Reporter) -> TaskOutcome:
    """Its process is killed in the middle of trial 1's second epoch, once."""

    def kill(epoch: int, batch: int) -> None:
        mark = _beside(task, "killed")
        if task.folder.name == "trial-0001" and (epoch, batch) == (2, 2) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return run_task(task, _Witness(task, reporter, kill) if _trains(task) else reporter)


def deadly(task: Task, reporter: Reporter) -> TaskOutcome:
    """Trial 1 hangs in its second epoch; trial 2 always ends its process, as the system does where memory runs out.

    On the pool, trial 3 stops its whole process in its second epoch, so that nothing in it answers any more.
    """

    def trouble(epoch: int, batch: int) -> None:
        if task.folder.name == "trial-0001" and epoch == 2:
            time.sleep(10_000)
        if task.folder.name == "trial-0003" and epoch == 2 and threading.current_thread().name == "tasks":
            os.kill(os.getpid(), signal.SIGSTOP)
        if task.folder.name == "trial-0002" and batch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_task(task, _Witness(task, reporter, trouble) if _trains(task) else reporter)


def late(task: Task, reporter: Reporter) -> TaskOutcome:
    """The first training's result is brought only once there is a file `go-on` beside the trials; others are slow."""
    outcome = _slowly(task, reporter, LATE_BATCH_S)
    if _trains(task) and task.folder.name == "trial-0000" and not _beside(task, "trained").exists():
        _beside(task, "trained").touch()
        while not _beside(task, "go-on").exists():
            time.sleep(0.01)
    return outcome


def little_memory(task: Task, reporter: Reporter) -> TaskOutcome:
    """Trial 0's process may have no more than 1 GiB beyond what it has."""
    if not _trains(task) or task.folder.name != "trial-0000":
        return run_task(task, reporter)
    with _limited(1024 * _MIB):
        return run_task(task, reporter)


def witnessed(stage: Path) -> list[dict[str, Any]]:
    """What was written down of a stage's epochs: process, its parent, trial, and the report; oldest first."""
    lines = [line for path in stage.glob("witness-*") for line in path.read_text().splitlines()]
    found: list[dict[str, Any]] = sorted(map(json.loads, lines), key=lambda row: row["at"])
    return found


class _Witness:
    """Writes down which process reports which epoch, and brings trouble before a batch."""

    def __init__(self, task: Task, reporter: Reporter, trouble: Callable[[int, int], object]) -> None:
        self._task = task
        self._reporter = reporter
        self._trouble = trouble
        self._epoch, self._batch = 1, 0

    def report(self, report: EpochReport) -> None:
        row = {"at": time.time(), "process": os.getpid(), "parent": os.getppid(), "trial": self._task.folder.name}
        with _beside(self._task, f"witness-{os.getpid()}").open("a") as file:
            file.write(json.dumps({**row, "report": report.model_dump(mode="json")}) + "\n")
        self._epoch, self._batch = report.epoch + 1, 0
        self._reporter.report(report)

    def should_stop(self) -> bool:
        self._batch += 1
        self._trouble(self._epoch, self._batch)
        return self._reporter.should_stop()


def _slowly(task: Task, reporter: Reporter, pause_s: float) -> TaskOutcome:
    def pause(*_: int) -> None:
        time.sleep(pause_s)

    return run_task(task, _Witness(task, reporter, pause) if _trains(task) else reporter)


def _trains(task: Task) -> bool:
    return isinstance(task, TrainTask)


def _beside(task: Task, name: str) -> Path:
    """In the stage's folder."""
    assert isinstance(task, TrainTask)
    return task.folder.parent / name


@contextlib.contextmanager
def _limited(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _use(name: str) -> None:
    """Make this function the default of workers on Ray."""
    from orchestrator.engines.ray.worker import WorkerSettings

    WorkerSettings.__init__.__kwdefaults__["run_task"] = f"{__name__}:{name}"
