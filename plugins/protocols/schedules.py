"""The interface of learning-rate schedules."""

from typing import ClassVar, Protocol

from plugins.protocols.cards import PluginCard


class Schedule(Protocol):
    """A learning-rate schedule after warm-up, as a factor of the base learning rate."""

    card: ClassVar[PluginCard]

    def factor(self, progress: float) -> float:
        """Factor between 0 and 1 at `progress` in [0, 1] of the steps after warm-up."""
        ...
