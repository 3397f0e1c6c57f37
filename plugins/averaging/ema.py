"""Exponential moving average over saved checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import every_nth, weighted_sum
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


def ema_weights(count: int, *, decay: float) -> list[float]:
    """Weights of `count` checkpoints, oldest first, in an average that starts at the oldest. They sum to 1.

    The average follows `a = decay * a + (1 - decay) * w`.
    """
    weights = [(1 - decay) * decay ** (count - 1 - position) for position in range(count)]
    weights[0] = decay ** (count - 1)
    return weights


@dataclass(frozen=True, kw_only=True)
class Ema:
    """EMA as a plug-in; `ema_weights` and `weighted_sum` do the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Polyak and Juditsky 1992; over one checkpoint per epoch after training, not over the training steps",
        cost="one read of `window` checkpoints, no forward pass",
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Fraction of the average that remains when a checkpoint is added."""
    window: Annotated[int, Field(ge=1)] = 5
    """Number of newest checkpoints in the average, regardless of how many were kept."""

    @property
    def num_needed(self) -> int:
        """`window`."""
        return self.window

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """The moving average at the newest checkpoint.

        Raises:
            ValueError: There are fewer than `window` checkpoints, or they differ in keys or shapes.
        """
        return weighted_sum(every_nth(checkpoints, window=self.window), ema_weights(self.window, decay=self.decay))
