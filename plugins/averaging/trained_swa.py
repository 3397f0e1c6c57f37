"""SWA: the mean of the weights of the last epochs, which training maintained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.averaging.arithmetic import copy_newest
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrainedSwa:
    """The mean saved with the newest checkpoint; the recipe's `swa` is the progress at which it begins."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Izmailov et al. 2018, arXiv:1803.05407; with the recipe's schedule instead of a cyclical one",
        cost="one read of 1 checkpoint; one more copy of the weights in training, updated once per epoch",
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
