"""Greedy soup: the best checkpoint, and each further one that does not make the average worse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import check_alike, weighted_sum
from plugins.protocols import Evaluated, PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


def goodness(result: Evaluated) -> tuple[float, float]:
    """A key that is larger for a better result: of the accuracy, then of the loss."""
    return result.accuracy, -result.loss if math.isfinite(result.loss) else -math.inf


def greedy_soup(
    checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
) -> "tuple[dict[str, Tensor], list[int]]":
    """Average checkpoints, entry by entry, as long as the average does not get worse.

    Args:
        checkpoints: State dicts of models of one topology, oldest first, with equal keys and shapes.
        evaluate: Judges a state dict on the validation images. Accuracy decides, and between equal ones the loss.

    Returns:
        The mean of the chosen checkpoints (see `weighted_sum`), and their positions, in order.

    Raises:
        ValueError: No checkpoints, or keys or shapes that differ.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    check_alike(checkpoints)
    results = [evaluate(checkpoint) for checkpoint in checkpoints]
    first, *others = sorted(
        range(len(checkpoints)), key=lambda index: (goodness(results[index]), index), reverse=True
    )  # the newer of two equally good ones first
    chosen, best = [first], goodness(results[first])
    soup = weighted_sum([checkpoints[first]], [1.0])
    for index in others:
        candidates = sorted([*chosen, index])
        mixed = weighted_sum([checkpoints[other] for other in candidates], [1 / len(candidates)] * len(candidates))
        found = goodness(evaluate(mixed))
        if found >= best:
            chosen, best, soup = candidates, found, mixed
    return soup, chosen


@dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """A greedy soup of the newest checkpoints as a plug-in; the arithmetic is `greedy_soup`."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Wortsman et al. 2022, arXiv:2203.05482, recipe 1; of equal accuracies the lower loss is better, which "
            "small validation parts need"
        ),
        cost="up to 2 `window` - 1 forward passes of the validation images, and `window` checkpoints in memory",
        needs=("validation images",),
    )
    window: Annotated[int, Field(ge=1)] = 5
    """How many of the newest checkpoints are considered."""

    @property
    def num_needed(self) -> int:
        """`window`."""
        return self.window

    def average_by(
        self, checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
    ) -> "dict[str, Tensor]":
        """The soup of the newest `window` checkpoints.

        Raises:
            ValueError: There are fewer than `window` checkpoints, or they differ in keys or shapes.
        """
        if self.window > len(checkpoints):
            raise ValueError(
                f"`window` must lie between 1 and the {len(checkpoints)} checkpoints saved, "
                f"but got window={self.window}. Keep more checkpoints or lower it."
            )
        soup, _ = greedy_soup(checkpoints[-self.window :], evaluate)
        return soup
