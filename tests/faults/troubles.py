"""What goes wrong in a driver's process, brought about by the system itself: called in it before the command.

Each function is named as `module:function` to `tests.faults.driver.start`.
"""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trainers.training.checkpoints
import trainers.training.loop
import trainers.training.packed
import trainers.worker

LAST_TRIAL = "trial-0008"
"""The last trial of the tiny study. No later suggestion depends on how it ends."""
HANGING_TRIAL = "trial-0002"
"""A trial of the study in `tests.packs`."""
_KIB, _MIB = 1 << 10, 1 << 20


def checkpoints_do_not_fit() -> None:
    """From the third checkpoint on, the kernel refuses files of more than 64 KiB while one is written."""
    write, count = trainers.training.checkpoints.write_folder, [0]

    def limited(*arguments: Any, **named: Any) -> None:
        count[0] += 1
        if count[0] < 3:
            return write(*arguments, **named)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * _KIB, hard))
        try:
            return write(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    trainers.training.checkpoints.write_folder = limited


def last_trial_hangs() -> None:
    """The last trial's training never comes back from its second epoch's first batch."""
    _in_the_last_trial(lambda: time.sleep(10_000))


def last_trial_is_killed() -> None:
    """The last trial ends the whole process, as the system does where memory runs out."""
    _in_the_last_trial(lambda: os.kill(os.getpid(), signal.SIGKILL))


def a_packed_trial_hangs() -> None:
    """`HANGING_TRIAL` never comes back from its second epoch's first batch, in whichever company."""
    _in_the_hanging_trial(lambda: time.sleep(10_000))


def a_packed_trial_is_killed() -> None:
    """`HANGING_TRIAL` ends the whole process there."""
    _in_the_hanging_trial(lambda: os.kill(os.getpid(), signal.SIGKILL))


def result_is_late() -> None:
    """The first training's result is brought only once a file `go-on` is beside the home."""
    train, beside = trainers.worker.train, Path(os.environ["VITSEARCH_HOME"]).parent

    def late(*arguments: Any) -> Any:
        outcome = train(*arguments)
        (beside / "trained").touch()
        while not (beside / "go-on").exists():
            time.sleep(0.01)
        return outcome

    trainers.worker.train = late


def little_memory() -> None:
    """Once training begins, the process may have no more than 200 MiB beyond what it has."""
    train, is_limited = trainers.worker.train, [False]

    def limited(*arguments: Any) -> Any:
        if not is_limited[0]:
            is_limited[0] = True
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 200 * _MIB
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        return train(*arguments)

    trainers.worker.train = limited


def _in_the_last_trial(trouble: Callable[[], object]) -> None:
    train = trainers.worker.train

    def troubled(task: Any, *arguments: Any) -> Any:
        if task.folder.name == LAST_TRIAL:
            trouble()
        return train(task, *arguments)

    trainers.worker.train = troubled


class _TroubledReporter:
    def __init__(self, reporter: Any, trouble: Callable[[], object]) -> None:
        self._reporter = reporter
        self._trouble = trouble
        self._has_reported = False

    def report(self, report: Any) -> None:
        self._has_reported = True
        self._reporter.report(report)

    def should_stop(self) -> bool:
        if self._has_reported:
            self._trouble()
        stop: bool = self._reporter.should_stop()
        return stop


def _in_the_hanging_trial(trouble: Callable[[], object]) -> None:
    follow = trainers.training.loop.follow

    def troubled(task: Any, image_task: Any, course: Any, learner: Any, writer: Any, reporter: Any, *ranks: Any) -> Any:
        if task.folder.name == HANGING_TRIAL:
            reporter = _TroubledReporter(reporter, trouble)
        return follow(task, image_task, course, learner, writer, reporter, *ranks)

    trainers.training.loop.follow = trainers.training.packed.follow = troubled
