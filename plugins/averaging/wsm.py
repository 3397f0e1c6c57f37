"""WSM: a weighted mean of checkpoints of a constant rate, whose weights stand in for a decay of the rate."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import every_nth, num_spanned, weighted_sum
from plugins.protocols import PluginCard, StateDict
from search_spaces.decay_forms import DecayForm, decayed

if TYPE_CHECKING:
    from torch import Tensor


def decay_weights(count: int, form: DecayForm) -> list[float]:
    """Weights of `count` checkpoints, oldest first, that have the effect of a decay. They sum to 1.

    The update from checkpoint `i - 1` to checkpoint `i` counts as much in the mean as the sum of the weights from `i`
    on. This sum is made equal to the decay at `i / count`, so `c_0 = 1 - w_1`, `c_j = w_j - w_(j+1)` and `c_k = w_k`
    with `k = count - 1`.

    Source: Tian et al. 2025, arXiv:2507.17634.
    """
    effect = [1.0, *(decayed(form, number / count) for number in range(1, count)), 0.0]
    return [earlier - later for earlier, later in itertools.pairwise(effect)]


@dataclass(frozen=True, kw_only=True)
class Wsm:
    """WSM as a plug-in; `decay_weights` does the arithmetic. It is meant for checkpoints before any decay."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Tian et al. 2025, arXiv:2507.17634; over checkpoints of epochs, after training",
        cost="one read of `window` checkpoints, no forward pass",
    )
    window: Annotated[int, Field(ge=1)] = 5
    """Number of checkpoints in the mean."""
    spacing: Annotated[int, Field(ge=1)] = 1
    """Distance between the averaged checkpoints: every `spacing`-th one, counted back from the newest."""
    decay: DecayForm = "1-sqrt"
    """Decay that the mean stands in for: `linear` (the plain mean), `cosine`, or `1-sqrt`."""

    @property
    def num_needed(self) -> int:
        """`(window - 1) * spacing + 1`."""
        return num_spanned(self.window, self.spacing)

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """The weighted mean of every `spacing`-th of the newest checkpoints.

        Raises:
            ValueError: There are fewer than `num_needed` checkpoints, or they differ in keys or shapes.
        """
        chosen = every_nth(checkpoints, window=self.window, spacing=self.spacing)
        return weighted_sum(chosen, decay_weights(self.window, self.decay))
