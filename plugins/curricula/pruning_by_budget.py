"""Data pruning by budget: few images per class keep the easy ones, many keep the hard ones."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.curricula.difficulty import PRIOR_COST, MeasuredBefore
from plugins.curricula.mixtures import images_in_rounds
from plugins.curricula.pruning import check_offset, divides_one, equal_passes, known_difficulty, window
from plugins.protocols import OrderContext, PluginCard, PriorDifficulty, Selection

if TYPE_CHECKING:
    from torch import Tensor


def window_position(kept_per_class: float, *, few: int, many: int) -> float:
    """Position of the window of `plugins.curricula.pruning.window`: 0 up to `few` images per class, 1 from `many`.

    Between them, it grows linearly with the logarithm of the number of images.

    Args:
        kept_per_class: Number of kept images per class.
        few: Number of images per class up to which the easiest are kept.
        many: Number of images per class from which the hardest are kept, above `few`.
    """
    share = math.log(kept_per_class / few) / math.log(many / few)
    return min(max(share, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class PruningByBudget(MeasuredBefore):
    """Pruning whose preference depends on the number of images that are kept; each class keeps the same share."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "the rule of Guo et al. 2024, DATM, arXiv:2310.05773: a small budget of images should keep easy ones, a "
            "large one hard ones. Differences: DATM distils synthetic images, we choose among the real ones; the form "
            "of the transition and the numbers of images are ours"
        ),
        cost=PRIOR_COST,
        needs=("difficulty measured before training",),
    )
    needs_difficulty: ClassVar[bool] = False
    keep: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    """Fraction of the training images of each class to keep."""
    few: Annotated[int, Field(ge=1)] = 50
    """Number of kept images per class up to which the easiest are kept."""
    many: Annotated[int, Field(ge=2)] = 1000
    """Number of kept images per class from which the hardest are kept; between, a window of medium difficulty."""
    difficulty: Literal["el2n", "grand", "trained-loss"] = "el2n"
    """`el2n`: norm of the error of the predicted probabilities; `grand`: norm of the gradient of the loss;
    `trained-loss`: the loss."""
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the training images of each class, the hardest, to leave out in any case. Use it if labels are
    wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_offset(self.keep, self.offset)
        if self.few >= self.many:
            raise ValueError(f"`few` must be below `many`, but got {self.few} and {self.many}. Lower `few`.")

    @property
    def prior_difficulty(self) -> PriorDifficulty:
        """The difficulty to measure before training."""
        return self.measured(self.difficulty)

    @property
    def independent_of_length(self) -> bool:
        """Whether epochs consist of whole passes."""
        return divides_one(self.keep)

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Passes of the kept images."""
        return equal_passes(num_epochs, self.keep)

    def select(self, size: int, context: OrderContext) -> Selection:
        """The kept images in random order."""
        return Selection(images_in_rounds(self._kept(context), size, context.generator))

    def _kept(self, context: OrderContext) -> "Tensor":
        import torch

        labels, difficulty = context.labels.cpu(), known_difficulty(context)
        classes = torch.bincount(labels).nonzero()[:, 0]
        position = window_position(self.keep * len(labels) / len(classes), few=self.few, many=self.many)
        kept = []
        for label in classes:
            own = (labels == label).nonzero()[:, 0]
            keep = max(1, round(self.keep * len(own)))
            drop = min(round(self.offset * len(own)), len(own) - keep)
            kept.append(own[window(difficulty[own], keep=keep, position=position, drop_hardest=drop)])
        return torch.cat(kept)
