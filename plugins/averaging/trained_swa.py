"""SWA: the mean weights of the last epochs, maintained during training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.averaging.arithmetic import copy_newest
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrainedSwa:
    """The mean saved with the newest checkpoint. The field `swa` of the recipe sets the progress at which it starts."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Izmailov et al. 2018, arXiv:1803.05407; with the recipe's schedule instead of a cyclical one",
        cost="one read of 1 checkpoint; a second copy of the weights during training, updated once per epoch",
        needs=("a recipe with `swa`",),
    )
    reads: ClassVar[str] = "swa"

    @property
    def num_needed(self) -> int:
        """1."""
        return 1

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """A copy of the newest mean."""
        return copy_newest(checkpoints)
