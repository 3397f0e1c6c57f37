"""Easy images count more at first: the weight of a difficult image in the loss rises to that of an easy one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.curricula.difficulty import COST_OF_CHOICE, ByDifficulty
from plugins.protocols import Now, OrderContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


def weights_of_easiness(easiness: "Tensor", *, progress: float, until: float) -> "Tensor":
    """Weights `w = D (1 - e/m) + e/m` for `e` < `m`, and 1 after.

    Args:
        easiness: `D`, between 0 and 1, shape (N,).
        progress: `e`.
        until: `m`.

    Source: MacAvaney et al. 2020, arXiv:2004.14269, as in the authors' code.
    """
    share = min(progress / until, 1.0)
    return easiness * (1 - share) + share


def easiness_of(difficulty: "Tensor", *, scale: Literal["rank", "value"]) -> "Tensor":
    """Easiness between 0 (the most difficult image) and 1 (the easiest), shape (N,), float64.

    Args:
        difficulty: Higher is harder, shape (N,).
        scale: `rank`: evenly spaced by rank, equal difficulties get their mean rank; `value`: linear in the difficulty.
    """
    import torch

    values = difficulty.detach().cpu().double()
    if scale == "rank":
        _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
        values = (torch.cumsum(counts, 0) - (counts + 1) / 2).double()[places]
    low, high = values.min(), values.max()
    return (high - values) / (high - low) if high > low else torch.ones_like(values)


@dataclass(frozen=True, kw_only=True)
class DifficultyWeights(ByDifficulty):
    """MacAvaney's weights as a plug-in; `weights_of_easiness` computes them. They can be combined with an order."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "MacAvaney et al. 2020, arXiv:2004.14269 (and `anti`, its anti-curriculum). Differences: easiness is the "
            "rank or value of a difficulty of images instead of a document's; the end is a progress (the authors' "
            "code: 20 epochs); weights change from pass to pass; a step's loss is the weighted mean, so its scale does "
            "not change"
        ),
        cost=COST_OF_CHOICE,
        needs=("difficulty",),
    )
    until: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Progress from which all images have the same weight."""
    prefer: Literal["easy", "hard"] = "easy"
    """The images with the larger weights; `hard` is the anti-curriculum, with easiness `1 - D`."""
    scale: Literal["rank", "value"] = "rank"
    """How a difficulty becomes an easiness between 0 and 1: evenly spaced by rank, or linear in its value."""

    def needs_difficulty_in(self, now: Now) -> bool:
        """Whether the current loss decides the weights in this epoch."""
        return self.difficulty == "loss" and now.progress < self.until

    def weigh(self, context: OrderContext) -> "Tensor | None":
        """Weights (N,); `None` after the end, and while the difficulty is unknown."""
        if context.now.progress >= self.until or context.difficulty is None:
            return None
        easiness = easiness_of(context.difficulty, scale=self.scale)
        if self.prefer == "hard":
            easiness = 1 - easiness
        return weights_of_easiness(easiness, progress=context.now.progress, until=self.until)
