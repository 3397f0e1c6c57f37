"""Distillation from decisions: the model learns from the labels and from the class that a teacher predicts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.losses.teaching import Decay, decay_factor, teacher_of
from plugins.protocols import LossContext, LossInput, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HardDistillation:
    """`(1 - w) * cross-entropy(targets) + w * cross-entropy(class predicted by the teacher)`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Touvron et al. 2021, DeiT, arXiv:2012.12877, Eq. 3 (weight 0.5), with one head for both terms; the "
        "paper also has a distillation token with a separate head",
        cost="as `soft-distillation`",
        needs=("teacher",),
    )
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the teacher; the labels have the rest."""
    decay: Decay = "none"
    """How the weight falls to 0 over the training: `none`, `linear`, `squared` or `cosine`."""

    @property
    def independent_of_length(self) -> bool:
        """Whether a training that has ended can be continued for more epochs: not if the weight decays."""
        return self.decay == "none"

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The teacher."""
        return frozenset({LossInput.TEACHER})

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        share = self.weight * decay_factor(self.decay, context.now.progress)
        decided = teacher_of(context).argmax(1)
        of_labels = F.cross_entropy(logits, targets, reduction="none")
        return (1 - share) * of_labels + share * F.cross_entropy(logits, decided, reduction="none")
