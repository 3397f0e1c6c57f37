"""Cross-entropy between the targets and the softmax of the logits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The usual loss of classification, `-sum_c target_c log softmax(logits)_c`."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline; as `torch.nn.CrossEntropyLoss`", cost="nothing")

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":  # noqa: ARG002 - protocol's
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, targets, reduction="none")

    def mean_of_labels(self, logits: "Tensor", labels: "Tensor", *, label_smoothing: float) -> "Tensor":
        """The mean of `loss` for labels with smoothing, without dimensions."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
