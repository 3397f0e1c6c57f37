"""Cross-entropy whose softmax is corrected for the class frequencies of the training part."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BalancedSoftmax:
    """Cross-entropy of `logits + strength * log(class counts)`; predictions use the plain logits.

    A model trained in this way predicts as if all classes were equally frequent.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Ren et al. 2020, arXiv:2007.10740, Eq. 3 (strength 1); Menon et al. 2020, arXiv:2007.07314, Eq. 10 "
        "(any strength). Classes without a training image count as one image",
        cost="nothing",
        needs=("class counts",),
    )
    independent_of_length: ClassVar[bool] = True
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the log class counts."""

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        offsets = self.strength * context.class_counts.clamp(min=1).log()
        return F.cross_entropy(logits + offsets.to(logits.dtype), targets, reduction="none")
