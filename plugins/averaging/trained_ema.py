"""The exponential moving average over all steps, maintained during training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.averaging.arithmetic import copy_newest
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrainedEma:
    """The moving average saved with the newest checkpoint. The field `ema` of the recipe sets its decay."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Polyak and Juditsky 1992; over all training steps",
        cost="one read of 1 checkpoint; a second copy of the weights during training, updated at every step",
        needs=("a recipe with `ema`",),
    )
    reads: ClassVar[str] = "ema"

    @property
    def num_needed(self) -> int:
        """1."""
        return 1

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """A copy of the newest moving average."""
        return copy_newest(checkpoints)
