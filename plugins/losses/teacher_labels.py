"""Distillation without labels: the model learns from the class probabilities of a teacher alone."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.losses.teaching import teacher_of
from plugins.protocols import LossContext, LossInput, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherLabels:
    """Jensen-Shannon divergence between the predictions of model and teacher: the mean KL to their average."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Cui et al. 2021, SSLD, arXiv:2103.05959: labels of the teacher alone with the Jensen-Shannon "
        "divergence; without the paper's further unlabelled images. Labels and label smoothing have no effect",
        cost="as `soft-distillation`",
        needs=("teacher",),
    )
    independent_of_length: ClassVar[bool] = True

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The teacher."""
        return frozenset({LossInput.TEACHER})

    def loss(
        self,
        logits: "Tensor",
        targets: "Tensor",  # noqa: ARG002 - the protocol's signature
        context: LossContext,
    ) -> "Tensor":
        """Loss of each image, shape (B,)."""
        import torch
        from torch.nn import functional as F

        own, given = logits.log_softmax(1), teacher_of(context).to(logits.dtype).log_softmax(1)
        middle = torch.logaddexp(own, given) - math.log(2)
        parts = (F.kl_div(middle, one, reduction="none", log_target=True).sum(1) for one in (own, given))
        return sum(parts, start=torch.zeros_like(own[:, 0])) / 2
