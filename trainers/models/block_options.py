"""Layers of the optional parts of blocks (`search_spaces.options`).

Legend: `B` images, `N` tokens, `H` heads of `d` channels, `D` width, `M` hidden channels of an MLP.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from search_spaces.options import NO_OPTIONS, BlockOptions

_SCALES = ((18, 0.1), (24, 1e-5))
"""Largest number of blocks with each initial layer scale."""
_SMALLEST_SCALE = 1e-6
_EPS = 1e-6


class OptionalParts(NamedTuple):
    """The optional parts of the blocks of one model."""

    options: BlockOptions = NO_OPTIONS
    num_blocks: int = 1
    """Number of blocks of the whole model, which determines the initial layer scales."""
    normalization: bool = True
    """False leaves out what normalises: the norms of queries and keys, and GRN."""
    eps: float = 1e-5
    """Number that layer norms add to variances."""

    def head_norm(self, head_width: int) -> nn.Module | None:
        """A layer norm of the queries or keys of each head, or `None`."""
        if not (self.options.qk_norm and self.normalization):
            return None
        return nn.LayerNorm(head_width, eps=self.eps)

    def layer_scale(self, width: int) -> "LayerScale | None":
        """The layer scale of a branch, or `None`."""
        if not self.options.layer_scale:
            return None
        return LayerScale(width, initial_scale(self.num_blocks))

    def response_norm(self, width: int) -> "ResponseNorm | None":
        """The GRN of an MLP with `width` hidden channels, or `None`."""
        return ResponseNorm(width) if self.options.grn and self.normalization else None


PLAIN = OptionalParts()


def initial_scale(num_blocks: int) -> float:
    """The initial layer scale of a model with this number of blocks: 0.1 up to 18, 1e-5 up to 24, then 1e-6.

    Source: Touvron et al. 2021, CaiT, arXiv:2103.17239.
    """
    return next((scale for most, scale in _SCALES if num_blocks <= most), _SMALLEST_SCALE)


class LayerScale(nn.Module):
    """A learned factor of each channel of a branch, before the branch is added to its input: (..., D) to the same."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


class ResponseNorm(nn.Module):
    """Global response normalisation of (B, ..., M): `x + gamma (x N) + beta`, at first the identity.

    `N` is the norm of a channel over the tokens of an image, divided by the mean of these norms over channels.

    Source: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808, section 3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = tuple(range(1, hidden.ndim - 1))
        norms = torch.linalg.vector_norm(hidden, dim=tokens, keepdim=True)
        relative = norms / (norms.mean(-1, keepdim=True) + _EPS)
        normed: Tensor = hidden + self.gamma * (hidden * relative) + self.beta
        return normed


def sigmoid_weights(logits: Tensor, num_keys: int | Tensor) -> Tensor:
    """Weights of the values in sigmoid attention, `sigmoid(logits - log n)`; rows do not sum to 1.

    Args:
        logits: Scaled scores, shape (..., N, N).
        num_keys: The number `n` of keys that take part, broadcast to the shape of the logits.

    Source: Ramapuram et al. 2024, arXiv:2409.04431, section 3 (bias `-log n`).
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shift = num_keys.to(wide.dtype).log() if isinstance(num_keys, Tensor) else math.log(num_keys)
    return (wide - shift).sigmoid().to(logits.dtype)
