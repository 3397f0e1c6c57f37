"""Class mixture by validation errors: classes with many mistakes are visited more often."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.curricula.mixtures import counts_of_shares, recent_class_values, visits_of_classes, whole_passes
from plugins.protocols import OrderContext, PluginCard, Selection, Signal

if TYPE_CHECKING:
    from torch import Tensor


def mixture_of_errors(errors: "Tensor", shares: "Tensor", *, strength: float) -> "Tensor":
    """Shares of the classes, `(1 - strength) * shares + strength * errors / sum(errors)`, shape (K,).

    Args:
        errors: Fraction of the validation images of each class that are classified wrongly, shape (K,), float64. If
            all are 0, the shares stay.
        shares: Shares of the classes in the training set, shape (K,), float64.
        strength: Weight of the errors, between 0 and 1.
    """
    total = errors.sum()
    return (1 - strength) * shares + strength * errors / total if total > 0 else shares


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """Reweighting by the profile of mistakes as a plug-in; `mixture_of_errors` computes the shares."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "the reweighting of He et al. 2025, STAT-Sel, arXiv:2510.10023. Differences: classes take the place of "
            "skills, and validation errors that of the judgement of a teacher; the shares of the training set keep a "
            "part of the weight"
        ),
        cost="one forward pass of the validation part per epoch, for the signal",
        needs=("validation error of each class",),
    )
    needs_difficulty: ClassVar[bool] = False
    independent_of_length: ClassVar[bool] = True
    strength: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the errors in the shares of the classes; the rest are the shares of the training set."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Validation error of each class."""
        return frozenset({Signal.CLASS_VAL_ERROR})

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Whole passes, then a smaller one for the remaining fraction of an epoch."""
        return whole_passes(num_epochs)

    def select(self, size: int, context: OrderContext) -> Selection:
        """Draw `size` visits by the mixture; the classes have the shares of the training set in the first epoch."""
        import torch

        labels = context.labels.cpu()
        counts = torch.bincount(labels)
        classes = counts.nonzero()[:, 0]
        shares = counts[classes].double() / len(labels)
        errors = recent_class_values(context.now.past[-1:], Signal.CLASS_VAL_ERROR, classes)
        if len(errors):
            shares = mixture_of_errors(errors[0], shares, strength=self.strength)
        visits = counts_of_shares(size, shares, context.generator)
        return Selection(visits_of_classes(visits, labels, classes, context.generator))
