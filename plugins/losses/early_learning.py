"""Early-learning regularisation: keeps predictions near their running average, against memorising wrong labels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.losses.visits import mean_of_visits
from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor

_TARGETS = "targets"
_LIMIT = 1e-4
"""Probabilities are kept between this and 1 minus this."""


def probabilities_of(logits: "Tensor") -> "Tensor":
    """Softmax of logits (B, classes), limited to [1e-4, 1 - 1e-4]."""
    return logits.softmax(1).clamp(_LIMIT, 1 - _LIMIT)


def updated_targets(old: "Tensor", logits: "Tensor", indices: "Tensor", *, momentum: float) -> "Tensor":
    """Running targets after a step, `momentum * t + (1 - momentum) * p / sum p`.

    Args:
        old: Running targets of the images before the step, shape (B, classes).
        logits: Logits without gradient, shape (B, classes).
        indices: Identities of the images, shape (B,). The predictions of an image that occurs twice are averaged, so
            that its target does not depend on the order.
        momentum: Fraction of the old targets that is kept.
    """
    predicted = probabilities_of(logits)
    predicted = mean_of_visits(predicted / predicted.sum(1, keepdim=True), indices)
    return momentum * old + (1 - momentum) * predicted


@dataclass(frozen=True, kw_only=True)
class EarlyLearning:
    """Cross-entropy plus `weight * log(1 - <t, p>)`.

    `p` is the prediction for an image, and `t` the running average of its earlier predictions, which begins at 0.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Liu et al. 2020, arXiv:2007.00151, Eq. 6 to 9, as in the authors' code. They use momentum 0.7 and "
        "weight 3 for CIFAR-10, 0.9 and 7 for CIFAR-100. Images must not be mixed (the authors' ELR+ mixes them)",
        cost="memory for images x classes numbers on the device and in the newest checkpoints",
        needs=("labels that may be wrong",),
    )
    independent_of_length: ClassVar[bool] = True
    weight: Annotated[float, Field(gt=0)] = 3.0
    """Weight of the regulariser."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Fraction of a running target that each visit of its image keeps."""

    def initial_state(self, num_images: int, num_classes: int) -> "dict[str, Tensor]":
        """Running targets of 0, shape (N, classes)."""
        import torch

        return {_TARGETS: torch.zeros(num_images, num_classes)}

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,), with the running targets of this step."""
        from torch.nn import functional as F

        running = self._updated(logits.detach(), context)
        likeness = (running * probabilities_of(logits)).sum(1)
        return F.cross_entropy(logits, targets, reduction="none") + self.weight * (1 - likeness).log()

    def observe(self, logits: "Tensor", context: LossContext) -> None:
        """Store the running targets of this step."""
        stored = context.state[_TARGETS]
        stored[context.indices] = self._updated(logits, context).to(stored.dtype)

    def _updated(self, logits: "Tensor", context: LossContext) -> "Tensor":
        old = context.state[_TARGETS][context.indices].to(logits.dtype)
        return updated_targets(old, logits, context.indices, momentum=self.momentum)
