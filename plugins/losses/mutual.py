"""Mutual learning: a second model of the topology is trained at the same time, and each learns from the other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.losses.teaching import divergence, peer_of
from plugins.protocols import LossContext, LossInput, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mutual:
    """Cross-entropy plus `weight * T^2 * KL(other model || model)`, with both distributions at temperature `T`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhang et al. 2018, arXiv:1706.00384, Alg. 1 with two models of one topology and different first "
        "weights. They take turns in every step, and each sees the other in evaluation mode; `together`, both take "
        "their step after the same forward pass. The trial's model is the first one, which alone starts from "
        "`weights`. Different trials of a pack do not teach each other: the result of a trial would depend on which "
        "trials ran beside it, and could be neither resumed nor repeated alone",
        cost="a second model is trained: more than twice the work (8 instead of 3 forward passes per image; 6 with "
        "`together`) and memory",
    )
    independent_of_length: ClassVar[bool] = True
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the divergence."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits of both; the authors use 1."""
    together: bool = False
    """Computes both models as one pack, which may contain other trials with their pairs. A trial must not have several
    GPUs, and `compile` has no effect."""

    @property
    def packs(self) -> bool:
        """Two models that take turns cannot be stacked with those of other trials."""
        return self.together

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The other model."""
        return frozenset({LossInput.MATE if self.together else LossInput.PEER})

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        given = peer_of(context).to(logits.dtype)
        soft = self.temperature**2 * divergence(given, logits, self.temperature)
        return F.cross_entropy(logits, targets, reduction="none") + self.weight * soft
