"""Features and their derivatives along a curve of images, for models with a sequence of tokens, without norms.

Legend: `K` derivatives (order + 1), `n` points of the curve, `r` images that span it, `N` tokens with the class token,
`P` patches, `D` width.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.blocks import Block
from trainers.models.taylor import TOKENS_AT_ONCE, add_attention, add_mlp, derivative_factors, slices


@torch.no_grad()
def token_features_along(
    embed: nn.Conv2d,
    constant: Tensor,
    features_of: Callable[[Tensor], Tensor],
    directions: Tensor,
    weights: Tensor,
) -> Tensor:
    """Features and their derivatives on a curve of images that are combinations of a few.

    The first layer is linear, so that it is applied to the `r` directions instead of the `n` images.

    Args:
        embed: The patch embedding.
        constant: The class token and positions: the input of the first block without the patches, shape (N, D).
        features_of: Coefficients of features (K, n, D) from those of the first tokens (K, n, N, D), whose memory it
            may reuse. It skips the model's norms.
        directions: Shape (r, C, H, W).
        weights: Coefficients of the images and of their derivatives up to the second, shape (K, n, r).

    Returns:
        Shape (K, n, D).
    """
    assert embed.bias is not None
    factors = derivative_factors(weights)
    spanned = F.conv2d(directions, embed.weight, None, embed.stride).flatten(2).transpose(1, 2).flatten(1)
    constant = torch.cat([constant[:1], constant[1:] + embed.bias])
    done = []
    for some in slices(weights.shape[1], TOKENS_AT_ONCE // (len(weights) * constant.numel())):
        done.append(features_of(_first_tokens(weights[:, some] / factors, spanned, constant)))
    return torch.cat(done, 1) * factors


def _first_tokens(coefficients: Tensor, spanned: Tensor, constant: Tensor) -> Tensor:
    """Tokens (K, n, N, D) before the first block.

    Args:
        coefficients: Coefficients of the directions, shape (K, n, r).
        spanned: The directions' patches without bias, shape (r, P D).
        constant: Tokens of an image without the patches, shape (N, D).
    """
    tokens = constant.new_zeros(*coefficients.shape[:2], *constant.shape)
    tokens[:, :, 1:] = torch.matmul(coefficients, spanned).view(*coefficients.shape[:2], -1, constant.shape[1])
    tokens[0] += constant
    return tokens


def blocks_along(tokens: Tensor, blocks: nn.ModuleList) -> Tensor:
    """Tokens (K, n, N, D) after the blocks, without norms; the memory of the input may be reused."""
    for module in blocks:
        block = cast("Block", module)
        tokens = add_attention(tokens, block.attn)
        add_mlp(tokens, block.mlp)
    return tokens
