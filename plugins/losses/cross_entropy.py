"""Cross-entropy between the targets and the softmax of the logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The usual classification loss, `-sum_c target_c log softmax(logits)_c`."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline; as `torch.nn.CrossEntropyLoss`", cost="nothing")
    independent_of_length: ClassVar[bool] = True

    def loss(
        self,
        logits: "Tensor",
        targets: "Tensor",
        context: LossContext,  # noqa: ARG002 - the protocol's signature
    ) -> "Tensor":
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, targets, reduction="none")

    def mean_of_labels(self, logits: "Tensor", labels: "Tensor", *, label_smoothing: float) -> "Tensor":
        """The mean of `loss` for labels with smoothing, a scalar."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def means_of_labels(
        self, logits: "Tensor", labels: "Tensor", sizes: Sequence[int], *, label_smoothing: Sequence[float]
    ) -> "Tensor":
        """The mean loss of each of `K` models over its first `sizes` images, shape (K,)."""
        import torch

        device, dtype = logits.device, logits.dtype
        log_probabilities = logits.log_softmax(-1)
        losses = -log_probabilities.gather(-1, labels[..., None])[..., 0]
        if any(label_smoothing):
            share = torch.tensor(label_smoothing, dtype=dtype).to(device, non_blocking=True)[:, None]
            losses = (1 - share) * losses - share * log_probabilities.mean(-1)
        if len(set(sizes)) == 1:
            return losses.mean(1)
        counts = torch.tensor(sizes).to(device, non_blocking=True)[:, None]
        counted = torch.arange(labels.shape[1], device=device) < counts
        return torch.where(counted, losses, 0.0).sum(1) / counts[:, 0]
