"""LAWA: the plain mean of the latest checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import every_nth, num_spanned, weighted_sum
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


def average_latest(checkpoints: Sequence[StateDict], *, window: int, spacing: int = 1) -> "dict[str, Tensor]":
    """Average `window` of the newest checkpoints of one training, entry by entry.

    Args:
        checkpoints: State dicts, oldest first, with equal keys and shapes.
        window: Number of checkpoints to average, at least 1.
        spacing: Distance between the averaged checkpoints: every `spacing`-th one, counted back from the newest.

    Returns:
        A new state dict. Floating-point entries are summed in float64 and cast back to their dtype. Other entries
        (step counters) are copied from the newest checkpoint.

    Raises:
        ValueError: There are fewer than `(window - 1) * spacing + 1` checkpoints, or they differ in keys or shapes.

    Source: Kaddour 2022, arXiv:2209.14981.
    """
    return weighted_sum(every_nth(checkpoints, window=window, spacing=spacing), [1 / window] * window)


@dataclass(frozen=True, kw_only=True)
class Lawa:
    """LAWA as a plug-in; `average_latest` does the arithmetic.

    At a high learning rate, before any decay, wide spacing helps most (early averaging, Sanyal et al. 2023).
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Kaddour 2022, arXiv:2209.14981; spacing as in Sanyal et al. 2023, arXiv:2306.03241",
        cost="one read of `window` checkpoints, no forward pass",
    )
    window: Annotated[int, Field(ge=1)] = 5
    """Number of checkpoints in the mean."""
    spacing: Annotated[int, Field(ge=1)] = 1
    """Distance between the averaged checkpoints: every `spacing`-th one, counted back from the newest."""

    @property
    def num_needed(self) -> int:
        """`(window - 1) * spacing + 1`."""
        return num_spanned(self.window, self.spacing)

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """The mean of every `spacing`-th of the newest checkpoints; see `average_latest`."""
        return average_latest(checkpoints, window=self.window, spacing=self.spacing)
