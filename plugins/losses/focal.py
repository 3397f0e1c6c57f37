"""Cross-entropy in which images that the model already classifies well count less."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 1e-7
"""Smallest value of `1 - p`; below it, the power has no finite derivative for `gamma` under 1."""


@dataclass(frozen=True, kw_only=True)
class Focal:
    """`-sum_c target_c (1 - p_c)^gamma log p_c`, where `p` is the softmax of the logits."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Lin et al. 2017, arXiv:1708.02002, Eq. 4, with a softmax over all classes instead of a sigmoid per "
        "class, and without the weights alpha, which `class_weights: balanced` gives",
        cost="nothing",
    )
    independent_of_length: ClassVar[bool] = True
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent; 0 is cross-entropy, higher values count well-classified images less."""

    def loss(
        self,
        logits: "Tensor",
        targets: "Tensor",
        context: LossContext,  # noqa: ARG002 - the protocol's signature
    ) -> "Tensor":
        """Loss of each image, shape (B,)."""
        log_probabilities = logits.log_softmax(1)
        rest = (1 - log_probabilities.exp()).clamp(min=_SMALLEST)
        return -(targets * rest**self.gamma * log_probabilities).sum(1)
