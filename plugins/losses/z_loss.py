"""Cross-entropy and a small penalty that keeps the logits from growing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ZLoss:
    """Cross-entropy plus `weight * (log Z)^2`, where `Z` is the sum of the exponentials of the logits."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Chowdhery et al. 2022, PaLM, arXiv:2204.02311; weight as in Wortsman et al. 2023, arXiv:2309.14322",
        cost="nothing",
    )
    independent_of_length: ClassVar[bool] = True
    weight: Annotated[float, Field(gt=0)] = 1e-4
    """Weight of the penalty."""

    def loss(
        self,
        logits: "Tensor",
        targets: "Tensor",
        context: LossContext,  # noqa: ARG002 - the protocol's signature
    ) -> "Tensor":
        """Loss of each image, shape (B,)."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, targets, reduction="none") + self.weight * logits.logsumexp(1).square()

    def mean_of_labels(self, logits: "Tensor", labels: "Tensor", *, label_smoothing: float) -> "Tensor":
        """The mean of `loss` for labels with smoothing, a scalar."""
        from torch.nn import functional as F

        plain = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return plain + self.weight * logits.logsumexp(1).square().mean()
