"""Gradient harmonizing: images whose gradient norm is common in the batch count less, easy and hopeless ones alike."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import LossContext, PluginCard

if TYPE_CHECKING:
    from torch import Tensor


def harmonizing_weights(norms: "Tensor", *, bins: int) -> "Tensor":
    """Weight of each image, `B / (R V)`, shape (B,), where `R` images share its bin and `V` bins are not empty.

    The weights of the images of each non-empty bin add up to `B / V`, so their mean over all images is 1.

    Args:
        norms: Gradient norms, between 0 and 1, shape (B,).
        bins: Number of bins of equal width.

    Source: Li et al. 2019, arXiv:1811.05181, GHM-C without momentum. The density is the count per non-empty bin, as in
    the authors' code.
    """
    import torch

    places = (norms * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(bins, dtype=norms.dtype, device=norms.device)
    counts = counts.index_add(0, places, torch.ones_like(norms))
    return len(norms) / (counts[places] * (counts > 0).sum())


@dataclass(frozen=True, kw_only=True)
class GradientHarmonizing:
    """GHM-C for classification with softmax; `harmonizing_weights` computes the weights."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Li et al. 2019, Gradient Harmonized Single-stage Detector, arXiv:1811.05181, GHM-C. Differences: the "
            "gradient norm of softmax, half of the absolute sum of `p - target`, which is `1 - p` of the class for "
            "plain labels, instead of a sigmoid's; densities of the current batch, without a moving average"
        ),
        cost="a histogram of the batch",
    )
    independent_of_length: ClassVar[bool] = True
    bins: Annotated[int, Field(ge=2)] = 10
    """Number of bins of the gradient norm."""

    def loss(
        self,
        logits: "Tensor",
        targets: "Tensor",
        context: LossContext,  # noqa: ARG002 - the protocol's signature
    ) -> "Tensor":
        """Weighted cross-entropy of each image, shape (B,)."""
        from torch.nn import functional as F

        norms = (logits.detach().softmax(1) - targets).abs().sum(1) / 2
        return harmonizing_weights(norms, bins=self.bins) * F.cross_entropy(logits, targets, reduction="none")
