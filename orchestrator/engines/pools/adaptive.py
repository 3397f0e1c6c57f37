"""Pool `auto`: runs a search in this process, or on several workers if the time saved exceeds that of starting them."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from orchestrator.engines.interfaces import EngineUnavailableError, Lost, Pool
from trainers.config import Configuration, Task, TaskOutcome
from trainers.training.reporting import Reporter

START_S = 12.0
"""Time from the start of Ray to the first step of a trial on a worker, rounded up."""
SEND_S = 1.0
"""Time that a search on running workers must save, because their suggestions know fewer results."""

_LOOKAHEAD_PER_WORKER = 2


class TaskTime(NamedTuple):
    """The time of a task in this process."""

    wall_s: float
    cpu_s: float
    """CPU time of all threads."""


class Workers(Pool, Protocol):
    """A pool of several workers that must be started."""

    def start(self) -> None:
        """Start what the workers need.

        Raises:
            EngineUnavailableError: It does not start.
        """
        ...


class AdaptivePool:
    """Decides for each search, before its first task and after each task in this process.

    The decision depends on the number of tasks left and the time of each: trainings are estimated in advance and again
    after the first one, all tasks are timed from the second one on. Once started, workers stay, so that a later search
    pays less for them.

    Args:
        inline: Runs tasks in this process.
        make_workers: Makes the pool of workers; nothing starts yet.
        num_workers: Maximum number of workers.
        estimate_s: Estimates the time of a training in seconds, from one of each size. It may learn from trainings.
        say: Shows a message to people.
    """

    def __init__(
        self,
        inline: Pool,
        make_workers: Callable[[], Workers],
        *,
        num_workers: int,
        estimate_s: Callable[[Sequence[Configuration]], float],
        say: Callable[[str], None],
    ) -> None:
        self._inline = inline
        self._make_workers = make_workers
        self._num_workers = num_workers
        self._estimate_s = estimate_s
        self._say = say
        self._workers: Workers | None = None
        self._is_started = False
        self._current: Pool = inline
        self._configurations: Sequence[Configuration] = ()
        self._num_left = 0
        self._times: list[TaskTime] = []
        self._busy_cores = 1.0
        """CPU seconds per second of the newest trainings, whose times the estimates are learned from."""

    @property
    def lookahead(self) -> int:
        return 0 if self._current is self._inline else _LOOKAHEAD_PER_WORKER * self._num_workers

    def prepare(self, configurations: Sequence[Configuration], *, num_tasks: int) -> None:
        self._current, self._configurations, self._num_left = self._inline, configurations, num_tasks
        self._times = []
        self._inline.prepare(configurations, num_tasks=num_tasks)
        if configurations and num_tasks > 1:
            self._decide(self._estimate())

    def has_room(self) -> bool:
        return self._current.has_room()

    def is_busy(self) -> bool:
        return self._current.is_busy()

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:
        self._current.submit(key, task, reporter)

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        if self._current is not self._inline:
            return self._current.wait()
        began, cpu_began = time.perf_counter(), time.process_time()
        ended = self._inline.wait()
        self._times.append(TaskTime(time.perf_counter() - began, time.process_time() - cpu_began))
        self._num_left -= 1
        later = self._times[1:]  # the first one also imports modules and fills caches
        if self._configurations and self._times[-1].wall_s > 0:
            self._busy_cores = self._times[-1].cpu_s / self._times[-1].wall_s
        if not self._inline.is_busy() and later:
            self._decide(TaskTime(fmean(one.wall_s for one in later), fmean(one.cpu_s for one in later)))
        elif not self._inline.is_busy() and self._configurations:
            self._decide(self._estimate())
        return ended

    def close(self) -> None:
        self._inline.close()
        if self._workers is not None:
            self._workers.close()

    def _estimate(self) -> TaskTime:
        seconds = self._estimate_s(self._configurations)
        return TaskTime(seconds, seconds * self._busy_cores)

    def _decide(self, task: TaskTime) -> None:
        """Change to the workers if that ends the search earlier."""
        saved_s = saved_by(self._num_workers, num_tasks=self._num_left, task=task)
        if saved_s <= (SEND_S if self._is_started else START_S) or not self._start():
            return
        assert self._workers is not None
        self._current = self._workers
        if self._configurations:
            self._busy_cores = 1.0  # a worker has one core
        self._workers.prepare(self._configurations, num_tasks=self._num_left)
        work = f"about {describe_time(self._num_left * task.cpu_s)} of work"
        self._say(f"{work}: running up to {min(self._num_workers, self._num_left)} trials at a time")

    def _start(self) -> bool:
        """Start the workers; `False` if they cannot be started, in which case everything runs in this process."""
        if self._is_started or self._num_workers < 2:
            return self._is_started
        self._workers = self._make_workers()
        try:
            self._workers.start()
        except EngineUnavailableError as error:
            self._workers.close()
            self._workers, self._num_workers = None, 1
            self._say(f"running one trial at a time, because no workers can be started: {error}")
            return False
        self._is_started = True
        return True


def saved_by(num_workers: int, *, num_tasks: int, task: TaskTime) -> float:
    """Seconds that `num_workers` workers with one core each save over this process, which may use all cores for a task.

    On a busy machine, a task waits for the CPU here and would wait on a worker, so its CPU time counts.
    """
    return num_tasks * min(task.wall_s, task.cpu_s) - math.ceil(num_tasks / max(num_workers, 1)) * task.cpu_s


def describe_time(seconds: float) -> str:
    """A duration in words: `45 seconds`, `12 minutes`, `3 hours`."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
