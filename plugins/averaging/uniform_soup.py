"""Uniform soup: the plain mean of the best trials of one topology."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import every_nth, weighted_sum
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UniformSoup:
    """The mean of the newest weights of several trials of the best trial's topology.

    It can only help trials that started from the same weights (`weights` of the `train` stage). Trials that started
    from different random weights have no common basin, and their mean predicts at random.

    Source: Wortsman et al. 2022, arXiv:2203.05482.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Wortsman et al. 2022, arXiv:2203.05482; over the best trials instead of all",
        cost="one read of `window` checkpoints, no forward pass",
        needs=("several trials of one topology that started from the same weights",),
    )
    reads: ClassVar[str] = "trials"
    window: Annotated[int, Field(ge=1)] = 3
    """Number of best trials in the mean."""

    @property
    def num_needed(self) -> int:
        """`window`."""
        return self.window

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """The mean of the last `window` checkpoints, which are those of the best trials.

        Raises:
            ValueError: There are fewer than `window` checkpoints, or they differ in keys or shapes.
        """
        return weighted_sum(every_nth(checkpoints, window=self.window), [1 / self.window] * self.window)
