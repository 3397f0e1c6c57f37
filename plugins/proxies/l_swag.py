"""L-SWAG: small variation of gradients in the layers that matter, times the number of activation patterns."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass

FLOOR = 1e-3
"""Smallest standard deviation of a weight's gradient, as a fraction of the root mean square of its layer."""


@dataclass(frozen=True, kw_only=True)
class LSwag(PassProxy):
    """`P sum_l log(sum_w 1 / std_i g_wi)`, over the layers whose term is in the upper part, and `P` patterns of SWAP.

    `g_wi` is the gradient of the mean cross-entropy of mini-batch `i` (half of the batch) with respect to weight `w`;
    ZiCo's numerator, the mean of the gradient, is left out. A layer counts if its term is not below the quantile
    `quantile` of all linear and convolution layers. `P` is the number of distinct sign patterns of hidden units, as in
    `swap`. Two mini-batches sometimes agree on a weight to the last digit. So that rounding does not decide, a standard
    deviation counts as at least a thousandth of its layer's.

    Raises:
        ValueError: There is only one image.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Casarin et al. 2025 (L-SWAG), arXiv:2505.07300, from a description of it: the authors' percentiles, "
        "which they choose for each space with accuracies, are replaced by one quantile",
        cost="per repeat, one forward and backward pass of the batch, shared with other proxies",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    quantile: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Quantile of the layers' terms below which a layer does not count; 0 counts all layers."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.swap import Swap

        if len(recorded.parts) < 2:
            raise ValueError(
                "l-swag compares the gradients of two mini-batches and needs at least 2 images, but got "
                f"{len(recorded.candidate.images)}. Raise `batch_size`."
            )
        terms = []
        for name in recorded.layers:
            gradients = torch.stack([part.weights[name].double() for part in recorded.gradients])
            terms.append(steadiness(gradients.std(0, correction=0)))
        return upper_sum(terms, self.quantile) * Swap().measure(recorded)


def steadiness(deviations: "Tensor") -> float:
    """`log sum_w 1 / s_w` over the standard deviations of a layer; 0 if none varies, nan if one is not finite."""
    import torch

    size = float(deviations.square().mean().sqrt())
    if not math.isfinite(size):
        return math.nan
    if size == 0:
        return 0.0
    return float(torch.log((1 / deviations.clamp(min=FLOOR * size)).sum()))


def upper_sum(terms: list[float], quantile: float) -> float:
    """Sum of the terms that are not below their quantile; nan if one is not finite."""
    import numpy as np

    if not all(map(math.isfinite, terms)):
        return math.nan
    threshold = float(np.quantile(terms, quantile, method="lower"))
    return math.fsum(term for term in terms if term >= threshold)
