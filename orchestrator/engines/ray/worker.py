"""The worker process of the Ray pool: runs tasks one after another, and collects messages for the driver."""

import importlib
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.ray.ranks import RanksResult, run_with_ranks
from trainers.config import EpochReport, PackedTrainTask, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

UNRESPONSIVE = "it gave no sign of life for {minutes:g} minutes (`resources.silent_minutes`), and its process was ended"
RUN_TASK = "trainers.worker:run_task"
"""Runs a task: `module:function`, called with the task and a reporter, so that the driver does not import torch."""
RUN_PACKED = "trainers.worker:run_packed"
"""Runs a pack; called with a `PackedTrainTask` and a reporter for each of its trainings."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings of Ray workers."""

    max_concurrent: int | None = None
    """Maximum number of concurrent workers; `None` means as many as fit on the cluster."""
    silent_minutes: float | None = None
    """Time without progress after which a training fails and its process is ended; `None` means no limit."""
    run_task: str = RUN_TASK
    run_packed: str = RUN_PACKED


class Reported(NamedTuple):
    """A running task has reported an epoch."""

    key: int
    report: EpochReport


class Ended(NamedTuple):
    """A task has ended."""

    key: int
    outcome: TaskOutcome | Lost
    """`Lost` if another rank of the training died."""
    seconds: float
    """Time that it ran."""
    ends_process: bool = False
    """Whether the process of the worker must end."""


Message = Reported | Ended
Work = Sequence[tuple[int, Task]]
"""A task with its key, or the trainings of a pack with their keys."""


class Taken(NamedTuple):
    """A worker's answer to `take`."""

    messages: list[Message]
    silent_s: float
    """Time since the running task last made progress: its start, a batch, a report."""


class TaskWorker:
    """The pool makes it a Ray actor with several threads: one call waits in `take` while others come in.

    Args:
        run_task: Runs a task, as `module:function`.
        run_packed: Runs a pack.
        silent_minutes: Time without progress after which the pool ends a training.
        num_ranks: Number of processes that train together, of which this is the first.
    """

    def __init__(
        self,
        run_task: str = RUN_TASK,
        run_packed: str = RUN_PACKED,
        silent_minutes: float | None = None,
        num_ranks: int = 1,
    ) -> None:
        self._run_task = run_task
        self._run_packed = run_packed
        self._silent_minutes = silent_minutes
        self._num_ranks = num_ranks
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._messages: list[Message] = []
        self._changed = threading.Condition()
        self._stopped: set[int] = set()
        self._last_progress = time.monotonic()
        threading.Thread(target=self._work, name="tasks", daemon=True).start()

    def push(self, works: Iterable[Work]) -> None:
        """Append work to the queue."""
        for work in works:
            self._inbox.put(work)

    def stop(self, keys: Iterable[int]) -> None:
        """End tasks as soon as possible: a training between two batches, other tasks before they begin."""
        self._stopped.update(keys)

    def take(self, timeout_s: float) -> Taken:
        """The messages since the last call; waits up to `timeout_s` seconds for the first one."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._messages), timeout_s)
            taken, self._messages = self._messages, []
        return Taken(taken, time.monotonic() - self._last_progress)

    def leave(self) -> None:
        """End the process at once, without Ray, which has died."""
        os._exit(0)

    def node_id(self) -> str:
        """Ray's id of the node that this worker runs on."""
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found

    def process_id(self) -> int:
        """Process id of this worker on its machine."""
        return os.getpid()

    def _work(self) -> None:
        try:
            run_task = load_function(self._run_task)
            while True:
                work = self._inbox.get()
                if len(work) == 1:
                    self._send(self._run_one(*work[0], run_task))
                else:
                    for ended in self._run_together(work):
                        self._send(ended)
        except BaseException:  # of any kind: without this thread, the worker would never answer again
            traceback.print_exc()
            os._exit(1)

    def _run_one(self, key: int, task: Task, run_task: Callable[[Task, Reporter], TaskOutcome]) -> Ended:
        if key in self._stopped:
            result = RanksResult(TaskOutcome(state="interrupted", reason="asked to end before it began"))
            seconds = 0.0
        else:
            self._last_progress, started = time.monotonic(), time.perf_counter()
            reporter = _MessageReporter(key, self._send, self._must_stop)
            result = run_with_ranks(
                run_task, task, reporter, num_ranks=self._num_ranks, silent_minutes=self._silent_minutes
            )
            seconds = time.perf_counter() - started
        self._stopped.discard(key)
        return Ended(key, result.outcome, seconds, result.ends_process)

    def _run_together(self, work: Work) -> Iterator[Ended]:
        run_packed = load_function(self._run_packed)
        self._last_progress, started = time.monotonic(), time.perf_counter()
        tasks = tuple(task for _, task in work if isinstance(task, TrainTask))
        reporters = [_MessageReporter(key, self._send, self._must_stop) for key, _ in work]
        for position, outcome in run_packed(PackedTrainTask(tasks=tasks), reporters):
            key = work[position][0]
            self._stopped.discard(key)
            yield Ended(key, outcome, time.perf_counter() - started)

    def _must_stop(self, key: int) -> bool:
        self._last_progress = time.monotonic()
        return key in self._stopped

    def _send(self, message: Message) -> None:
        with self._changed:
            self._last_progress = time.monotonic()
            self._messages.append(message)
            self._changed.notify_all()


class _MessageReporter(Reporter):
    """Puts reports among the worker's messages."""

    def __init__(self, key: int, send: Callable[[Message], None], must_stop: Callable[[int], bool]) -> None:
        self._key = key
        self._send = send
        self._must_stop = must_stop

    def report(self, report: EpochReport) -> None:
        self._send(Reported(self._key, report))

    def should_stop(self) -> bool:
        return self._must_stop(self._key)


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
