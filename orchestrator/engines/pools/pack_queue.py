"""A queue of tasks that groups trainings that can run together into packs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.config import Task, TrainTask
from trainers.training.packing import can_be_packed, unpackable_plugin

_logger = logging.getLogger(__name__)

_PACKS = 4
"""Number of packs of tasks that may wait, so that trainings of different topologies find others to join."""


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
    """A queue of packs. A task that cannot join others is a full pack by itself.

    Full packs leave first, oldest first; then the pack with the most tasks, the oldest of equals. The same tasks in the
    same order always leave in the same packs.
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
        """Whether another task could join a pack before it leaves."""
        if self.has_full_pack:
            return False
        waiting = sum(len(pack.keys) for pack in self._packs)
        return waiting < _PACKS * max((pack.largest for pack in self._packs), default=1)

    def add(self, key: int, task: Task, *, largest: int = 1) -> None:
        """Add a task to the first pack that has room for it, or else to a new one.

        Args:
            key: Key of the task.
            task: The task; only a training joins others.
            largest: Largest number of trainings in a pack.
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
        """Put tasks back in front, in their order, each as a pack by itself."""
        self._packs[:0] = [_Pack([key], [task], 1) for key, task in entries]

    def peek(self) -> tuple[int, ...]:
        """The keys of the next pack; there must be one."""
        return tuple(self._next().keys)

    def take(self) -> tuple[int, ...]:
        """Remove the next pack and return its keys."""
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
