"""The interfaces of learning-rate schedules."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard


class Schedule(Protocol):
    """A learning-rate schedule after warm-up, as a factor of the base learning rate."""

    card: ClassVar[PluginCard]

    def factor(self, progress: float) -> float:
        """Factor between 0 and 1 at `progress` in [0, 1] of the steps after warm-up."""
        ...


@runtime_checkable
class EpochSchedule(Protocol):
    """A schedule that counts epochs from the start of the training. It has `factor_after` instead of `factor`.

    During warm-up, the rising rate is multiplied by the factor.
    """

    card: ClassVar[PluginCard]

    def factor_after(self, epochs: float, num_epochs: int) -> float:
        """Factor between 0 and 1 after `epochs` of the `num_epochs` epochs of the training."""
        ...


@runtime_checkable
class LearnsFromStage(Protocol):
    """An optional part of a schedule that depends on the gradient norms of an earlier train stage."""

    @property
    def stage(self) -> str | None:
        """Name of that stage; `None` if the settings contain the norms."""
        ...

    def learned(self, norms: Sequence[float]) -> dict[str, Any]:
        """The settings of a schedule that contains the norms instead of the name.

        Args:
            norms: Mean gradient norm of each epoch of the stage's best trial.
        """
        ...
