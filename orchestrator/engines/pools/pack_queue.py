"""Tasks that wait for a worker, gathered in packs of trainings that can be computed together."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.config import Task, TrainTask
from trainers.training.packing import can_be_packed, unpackable_plugin

_logger = logging.getLogger(__name__)

_PACKS = 4
"""So many packs' worth of tasks may wait, so that trainings of different topologies find others of their kind."""


@dataclass(eq=False)
class _Pack:
    keys: list[int]
    tasks: list[Task]
    largest: int

    @property
    def is_full(self) -> bool:
        return len(self.keys) >= self.largest

    def takes(self, task: TrainTask) -> bool:
        return not self.is_full and all(
            isinstance(member, TrainTask) and can_be_packed(member, task) is None for member in self.tasks
        )


class PackQueue:
    """A queue whose entries are packs; a task that is no training, or trains alone, is a full pack by itself.

    Full packs come out first, the oldest before the others; then the pack with most tasks, again the oldest of these.
    The same tasks in the same order always come out in the same packs.
    """

    def __init__(self) -> None:
        self._packs: list[_Pack] = []
        self._logged: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._packs)

    @property
    def has_full_pack(self) -> bool:
        return any(pack.is_full for pack in self._packs)

    @property
    def wants_more(self) -> bool:
        """Whether another task could make a pack fuller that is about to come out."""
        if self.has_full_pack:
            return False
        waiting = sum(len(pack.keys) for pack in self._packs)
        return waiting < _PACKS * max((pack.largest for pack in self._packs), default=1)

    def add(self, key: int, task: Task, *, largest: int = 1) -> None:
        """Put a task into the first pack that has a place for it, or else into a new one.

        Args:
            key: Of the task.
            task: A training joins others; another task does not.
            largest: Most trainings of a pack.
        """
        if largest > 1 and isinstance(task, TrainTask) and not task.alone and not self._trains_alone(task):
            for pack in self._packs:
                if pack.takes(task):
                    pack.keys.append(key)
                    pack.tasks.append(task)
                    return
            self._packs.append(_Pack([key], [task], largest))
        else:
            self._packs.append(_Pack([key], [task], 1))

    def put_back(self, entries: Sequence[tuple[int, Task]]) -> None:
        """Put tasks before all others, in their order, each for itself."""
        self._packs[:0] = [_Pack([key], [task], 1) for key, task in entries]

    def peek(self) -> tuple[int, ...]:
        """The keys of the pack that comes out next; there must be one."""
        return tuple(self._next().keys)

    def take(self) -> tuple[int, ...]:
        """The same, taken out."""
        pack = self._next()
        self._packs.remove(pack)
        return tuple(pack.keys)

    def clear(self) -> None:
        self._packs.clear()

    def _trains_alone(self, task: TrainTask) -> bool:
        """Whether a plug-in of the recipe rules packs out; the first training with it logs the reason."""
        plugin = unpackable_plugin(task.configuration)
        if plugin is not None and plugin not in self._logged:
            self._logged.add(plugin)
            _logger.warning("Trials with the %s train alone: it cannot be computed with stacked weights.", plugin)
        return plugin is not None

    def _next(self) -> _Pack:
        full = next((pack for pack in self._packs if pack.is_full), None)
        return full or max(self._packs, key=lambda pack: len(pack.keys))
