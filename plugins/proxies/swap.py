"""SWAP: the number of different patterns in which hidden units separate the images of a batch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import BlockRecord, RecordedPass

BITS = 52
"""Number of signs that a float64 represents exactly."""


@dataclass(frozen=True, kw_only=True)
class Swap(PassProxy):
    """The number of distinct sign patterns of the hidden units of all MLPs over the images.

    The pattern of a unit consists of one sign per image, the sign of the input of its activation function. The setting
    `tokens` defines the units for images with many tokens. The authors' form for transformers is `each`: a hidden unit
    at each token counts separately. This makes millions of units, but at most `2^B` patterns can differ: with 16
    images, an AutoFormer-T of any shape reaches 0.9 of this bound. Our form, `mean`, averages the input of a unit over
    the tokens of an image. Then a fifth of the patterns differ, far from either bound. `each` needs 32 images or more.

    With `mu` and `sigma`, the number is multiplied by `exp(-(p - mu)^2 / sigma)`, where `p` is the number of parameters
    in thousands.

    Source: Peng et al. 2024, arXiv:2403.04161; for transformers, Peng et al. 2026, arXiv:2605.07378.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Peng et al. 2024 (SWAP), arXiv:2403.04161; signs of GELU inputs, averaged over tokens; the "
        "network's own initialisation, whereas the authors redraw weights from N(0, 1) for each repeat (tau 0.8 to "
        "ours)",
        cost="per repeat, one forward pass of the batch, shared with other proxies",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over; the authors use 32."""
    tokens: Literal["mean", "each"] = "mean"
    """Whether a unit has one sign per image (`mean`) or one sign per token (`each`)."""
    mu: Annotated[float, Field(gt=0)] | None = None
    """Optimal number of parameters, in thousands; `None` for no regularisation."""
    sigma: Annotated[float, Field(gt=0)] | None = None
    """Width of the regularisation around `mu`, in squared thousands of parameters."""

    def __post_init__(self) -> None:
        if (self.mu is None) != (self.sigma is None):
            raise ValueError(
                f"`mu` and `sigma` must be set together or not at all, but got mu={self.mu}, sigma={self.sigma}. Set "
                "both or remove both."
            )

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.block_features import is_finite, map_blocks

        if not is_finite(recorded):
            return float("nan")

        def signs(block: "BlockRecord") -> "Tensor":
            hidden = block.hidden.detach()
            return (hidden if self.tokens == "each" else hidden.flatten(1, -2).mean(1, keepdim=True)) > 0

        found = map_blocks(recorded, signs, lambda values: different_patterns(values.flatten(1)))
        count = unique_columns(torch.cat(found, dim=1)).shape[1]
        return count * self._regularisation(recorded.candidate.costs.parameters)

    def _regularisation(self, parameters: int) -> float:
        if self.mu is None or self.sigma is None:
            return 1.0
        return math.exp(-((parameters / 1000 - self.mu) ** 2) / self.sigma)


def different_patterns(signs: "Tensor") -> "Tensor":
    """The distinct columns of a Boolean matrix (B, M), encoded as 52-bit integers: (ceil(B / 52), at most M)."""
    import torch

    powers = 2.0 ** torch.arange(BITS, dtype=torch.float64, device=signs.device)
    words = [powers[: len(group)] @ group.double() for group in torch.split(signs, BITS)]
    return unique_columns(torch.stack(words))


def unique_columns(words: "Tensor") -> "Tensor":
    """The distinct columns of a matrix. For a single row, this is ten times as fast as `torch.unique(..., dim=1)`."""
    import torch

    found: Tensor = torch.unique(words[0])[None] if len(words) == 1 else torch.unique(words, dim=1)
    return found
