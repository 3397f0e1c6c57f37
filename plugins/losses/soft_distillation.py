"""Distillation: the model learns from the labels and from the class probabilities of a trained teacher."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.losses.teaching import Decay, decay_factor, divergence, teacher_of
from plugins.protocols import LossContext, LossInput, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


def better_of(teacher: "Tensor", start: "Tensor", targets: "Tensor") -> "Tensor":
    """Logits (B, classes): of the teacher for images whose target it finds more probable than `start`, else `start`."""
    import torch

    teacher_knows, start_knows = ((targets * logits.softmax(1)).sum(1) for logits in (teacher, start))
    return torch.where((teacher_knows > start_knows)[:, None], teacher, start)


@dataclass(frozen=True, kw_only=True)
class SoftDistillation:
    """`(1 - w) * cross-entropy + w * T^2 * KL(teacher || model)`, with both distributions at temperature `T`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Hinton et al. 2015, arXiv:1503.02531, weighted as in Touvron et al. 2021, arXiv:2012.12877, Eq. 1. "
        "`decay`: the forms of CSKD (Zhao et al. 2023, arXiv:2307.08500) for the weight of the whole teacher; its "
        "dense part per patch is left out, because teachers here have one prediction per image. `only_where_better`: "
        "Roth et al. 2023, arXiv:2310.17653: an image learns from the teacher if that finds its class more probable "
        "than a frozen copy of the model does, and otherwise from the copy",
        cost="one forward pass of the teacher per image visited, or one per training image if neither augmentation, "
        "mixing nor image size change the images; one more of the model with `only_where_better`",
        needs=("teacher",),
    )
    temperature: Annotated[float, Field(gt=0)] = 3.0
    """Divides the logits of both; higher values compare also improbable classes."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the teacher; the labels have the rest."""
    decay: Decay = "none"
    """How the weight falls to 0 over the training: `none`, `linear`, `squared` or `cosine`."""
    only_where_better: bool = False
    """Learn from a frozen copy of the first weights if it knows an image better than the teacher. This is for trainings
    that start from trained weights; random ones hardly ever know better."""

    @property
    def independent_of_length(self) -> bool:
        """Whether a training that has ended can be continued for more epochs: not if the weight decays."""
        return self.decay == "none"

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The teacher, and with `only_where_better` the model's first weights."""
        return frozenset({LossInput.TEACHER, *([LossInput.START] if self.only_where_better else [])})

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        given = teacher_of(context).to(logits.dtype)
        if self.only_where_better and context.start is not None:
            given = better_of(given, context.start.to(logits.dtype), targets)
        share = self.weight * decay_factor(self.decay, context.now.progress)
        soft = self.temperature**2 * divergence(given, logits, self.temperature)
        return (1 - share) * F.cross_entropy(logits, targets, reduction="none") + share * soft
