"""The interfaces of losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard
from plugins.protocols.curricula import Now

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """Inputs of a loss in addition to logits and targets. `B` is the number of images of the step."""

    labels: "Tensor"
    """Classes of the images before mixing, shape (B,), int64."""
    now: Now


class Loss(Protocol):
    """The quantity that training minimises. It may declare `packs` (`DeclaresPacking`)."""

    card: ClassVar[PluginCard]

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,).

        Args:
            logits: Shape (B, classes), float32 or float64.
            targets: Soft targets, shape (B, classes), in the dtype of the logits; each row sums to 1. Label smoothing
                and mixing are already applied.
            context: Further inputs of this step.
        """
        ...


@runtime_checkable
class LabelLoss(Protocol):
    """An optional part of a loss: a faster computation for plain labels, without soft targets in memory."""

    def mean_of_labels(self, logits: "Tensor", labels: "Tensor", *, label_smoothing: float) -> "Tensor":
        """The mean of `loss` over the images, a scalar.

        Args:
            logits: Shape (B, classes).
            labels: Shape (B,), int64.
            label_smoothing: Fraction of each target that is spread evenly over all classes.
        """
        ...


@runtime_checkable
class StackedLabelLoss(Protocol):
    """An optional part of a loss: the means of all models of a pack in one computation."""

    def means_of_labels(
        self, logits: "Tensor", labels: "Tensor", sizes: Sequence[int], *, label_smoothing: Sequence[float]
    ) -> "Tensor":
        """The mean of `loss` for each of `K` models, shape (K,).

        Args:
            logits: Shape (K, B, classes).
            labels: Shape (K, B), int64.
            sizes: For each model, the number of images, counted from the first, that enter the mean.
            label_smoothing: Label smoothing of each model.
        """
        ...
