"""Greedy soup: the average of the best checkpoint and of each further one that does not make the average worse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.averaging.arithmetic import check_alike, every_nth, weighted_sum
from plugins.protocols import Evaluated, PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


def goodness(result: Evaluated) -> tuple[float, float]:
    """Sort key that is larger for a better result: by the study's metric, then by loss."""
    score = result.accuracy if result.score is None else result.score
    return score, -result.loss if math.isfinite(result.loss) else -math.inf


def greedy_soup(
    checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
) -> "tuple[dict[str, Tensor], list[int]]":
    """Average checkpoints, entry by entry, as long as the average does not get worse.

    Args:
        checkpoints: State dicts of models of one topology, oldest first, with equal keys and shapes.
        evaluate: Evaluates a state dict on the validation images. The study's metric decides; the loss breaks ties.

    Returns:
        The mean of the chosen checkpoints (see `weighted_sum`) and their sorted positions.

    Raises:
        ValueError: There are no checkpoints, or their keys or shapes differ.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    check_alike(checkpoints)
    results = [evaluate(checkpoint) for checkpoint in checkpoints]
    first, *others = sorted(
        range(len(checkpoints)), key=lambda index: (goodness(results[index]), index), reverse=True
    )  # of equally good checkpoints, the newest comes first
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
    """A greedy soup as a plug-in, of one trial's newest checkpoints or of several trials."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Wortsman et al. 2022, arXiv:2203.05482, recipe 1; the loss decides between equal accuracies, which are "
            "common on small validation sets"
        ),
        cost="up to 2 `window` - 1 forward passes of the validation images, with `window` checkpoints in memory",
        needs=("validation images",),
    )
    window: Annotated[int, Field(ge=1)] = 5
    """Number of newest checkpoints, or of best trials, to consider."""
    across: Literal["epochs", "trials"] = "epochs"
    """`epochs`: checkpoints of the best trial; `trials`: the newest weights of the best trials of its topology, which
    should have started from the same weights."""

    @property
    def reads(self) -> str | None:
        """`trials` if it mixes several trials."""
        return "trials" if self.across == "trials" else None

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
        soup, _ = greedy_soup(every_nth(checkpoints, window=self.window), evaluate)
        return soup
