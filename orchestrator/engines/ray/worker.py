"""The worker process of the Ray pool: does tasks one after another and keeps what it has to tell."""

import importlib
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from trainers.config import EpochReport, PackedTrainTask, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

SILENT = "it gave no sign of life for {minutes:g} minutes (`resources.silent_minutes`), and its process was ended"
RUN_TASK = "trainers.worker:run_task"
"""What does a task: `module:function`, called with the task and a reporter, so that the driver imports no torch."""
RUN_PACKED = "trainers.worker:run_packed"
"""What does a pack, called with a `PackedTrainTask` and a reporter for each of its trainings."""


class Reported(NamedTuple):
    """A task that runs has reported."""

    key: int
    report: EpochReport


class Ended(NamedTuple):
    """A task has ended."""

    key: int
    outcome: TaskOutcome
    seconds: float
    """What it took."""


Message = Reported | Ended
Work = Sequence[tuple[int, Task]]
"""A task with its key, or the trainings of a pack with theirs."""


class Taken(NamedTuple):
    """What a worker answers when it is asked for news."""

    messages: list[Message]
    silent_s: float
    """Since the running task gave a sign of life: its beginning, a batch, a report."""


class TaskWorker:
    """Made a Ray actor with two threads by the pool: one call waits in `take` while others come in.

    Args:
        run_task: What does a task, as `module:function`.
        run_packed: What does a pack.
    """

    def __init__(self, run_task: str = RUN_TASK, run_packed: str = RUN_PACKED) -> None:
        self._run_task = run_task
        self._run_packed = run_packed
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._messages: list[Message] = []
        self._changed = threading.Condition()
        self._stopped: set[int] = set()
        self._last_sign = time.monotonic()
        threading.Thread(target=self._work, name="tasks", daemon=True).start()

    def push(self, works: Iterable[Work]) -> None:
        """What to do after what is here already."""
        for work in works:
            self._inbox.put(work)

    def stop(self, keys: Iterable[int]) -> None:
        """End these as soon as it can be done: a training between batches, others before they begin."""
        self._stopped.update(keys)

    def take(self, timeout_s: float) -> Taken:
        """What was told since the last call; waits for the first of it, so long."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._messages), timeout_s)
            taken, self._messages = self._messages, []
        return Taken(taken, time.monotonic() - self._last_sign)

    def leave(self) -> None:
        """End the process at once: nobody is left to ask it anything."""
        os._exit(0)

    def process_id(self) -> int:
        """Of this worker, on its own machine."""
        return os.getpid()

    def _work(self) -> None:
        try:
            run_task = load_function(self._run_task)
            while True:
                work = self._inbox.get()
                if len(work) == 1:
                    self._tell(self._do(*work[0], run_task))
                else:
                    for ended in self._do_together(work):
                        self._tell(ended)
        except BaseException:  # a task may end in any way; a worker without this thread would never answer again
            traceback.print_exc()
            os._exit(1)

    def _do(self, key: int, task: Task, run_task: Callable[[Task, Reporter], TaskOutcome]) -> Ended:
        if key in self._stopped:
            outcome, seconds = TaskOutcome(state="interrupted", reason="asked to end before it began"), 0.0
        else:
            self._last_sign, started = time.monotonic(), time.perf_counter()
            outcome = run_task(task, _MessageReporter(key, self._tell, self._must_stop))
            seconds = time.perf_counter() - started
        self._stopped.discard(key)
        return Ended(key, outcome, seconds)

    def _do_together(self, work: Work) -> Iterator[Ended]:
        run_packed = load_function(self._run_packed)
        self._last_sign, started = time.monotonic(), time.perf_counter()
        tasks = tuple(task for _, task in work if isinstance(task, TrainTask))
        reporters = [_MessageReporter(key, self._tell, self._must_stop) for key, _ in work]
        for position, outcome in run_packed(PackedTrainTask(tasks=tasks), reporters):
            key = work[position][0]
            self._stopped.discard(key)
            yield Ended(key, outcome, time.perf_counter() - started)

    def _must_stop(self, key: int) -> bool:
        self._last_sign = time.monotonic()
        return key in self._stopped

    def _tell(self, message: Message) -> None:
        with self._changed:
            self._last_sign = time.monotonic()
            self._messages.append(message)
            self._changed.notify_all()


class _MessageReporter(Reporter):
    """Puts reports among the worker's messages."""

    def __init__(self, key: int, tell: Callable[[Message], None], must_stop: Callable[[int], bool]) -> None:
        self._key = key
        self._tell = tell
        self._must_stop = must_stop

    def report(self, report: EpochReport) -> None:
        self._tell(Reported(self._key, report))

    def should_stop(self) -> bool:
        return self._must_stop(self._key)


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
