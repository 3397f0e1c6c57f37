"""Pool `inline`: runs tasks in this process, one at a time, or a pack of trainings together."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.pools.pack_queue import PackQueue
from trainers.config import Configuration, PackedTrainTask, Task, TaskOutcome, TrainTask
from trainers.training.packing import is_tried_alone
from trainers.training.reporting import Reporter


class InlinePool:
    """Runs a task or a pack when `wait` is called.

    It accepts no further task while a pack runs, so that the next suggestion can use the results of the whole pack.

    Args:
        trials_per_pack: Most trainings of one topology that run together.
    """

    def __init__(self, trials_per_pack: int = 1) -> None:
        self._trials_per_pack = trials_per_pack
        self._tasks: dict[int, tuple[Task, Reporter]] = {}
        self._queue = PackQueue()
        self._running: list[int] = []
        self._outcomes: Generator[tuple[int, TaskOutcome], None, None] | None = None

    @property
    def lookahead(self) -> int:
        return 0

    def prepare(self, configurations: Sequence[Configuration], *, num_tasks: int) -> None:
        """Do nothing, because a training or a pack uses the whole machine."""

    def has_room(self) -> bool:
        return not self._running and self._queue.wants_more

    def is_busy(self) -> bool:
        return bool(self._tasks)

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:
        self._tasks[key] = task, reporter
        self._queue.add(key, task, largest=self._trials_per_pack)

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        while True:
            key, outcome = self._next_outcome()
            if not is_tried_alone(outcome):
                del self._tasks[key]
                return key, outcome
            self._queue.put_back([(key, self._tasks[key][0])])

    def close(self) -> None:
        if self._outcomes is not None:
            self._outcomes.close()  # frees the memory of a pack
        self._tasks.clear()
        self._queue.clear()
        self._running.clear()

    def _next_outcome(self) -> tuple[int, TaskOutcome]:
        if self._outcomes is None or not self._running:
            self._running = list(self._queue.take())
            self._outcomes = self._evaluate(tuple(self._running))
        with ExitStack() as stack:
            for key in self._running:
                stack.enter_context(self._tasks[key][1].running())
            key, outcome = next(self._outcomes)
        self._running.remove(key)
        return key, outcome

    def _evaluate(self, keys: tuple[int, ...]) -> Generator[tuple[int, TaskOutcome], None, None]:
        from trainers.worker import run_packed, run_task  # imports torch

        tasks, reporters = zip(*(self._tasks[key] for key in keys), strict=True)
        if len(keys) == 1:
            yield keys[0], run_task(tasks[0], reporters[0])
            return
        if reporters[0].should_stop():
            reason = "asked to end before it began"
            yield from ((key, TaskOutcome(state="interrupted", reason=reason)) for key in keys)
            return
        trainings = tuple(task for task in tasks if isinstance(task, TrainTask))
        for position, outcome in run_packed(PackedTrainTask(tasks=trainings), reporters):
            yield keys[position], outcome
