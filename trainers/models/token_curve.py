"""Features and their derivatives along a curve of images, for models with a sequence of tokens, without norms.

Legend: `K` derivatives (order + 1), `R` networks in a stack (1 for an ordinary model), `n` points of the curve, `r`
images that span it, `N` tokens with the class token, `P` patches, `D` width.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from trainers.models.blocks import Block
from trainers.models.stacking import ImageConvolution, spanned_tokens
from trainers.models.taylor import TOKENS_AT_ONCE, add_attention, add_mlp, check_once, derivative_factors, slices


@torch.no_grad()
def token_features_along(
    embed: ImageConvolution,
    constant: Tensor,
    features_of: Callable[[Tensor], Tensor],
    directions: Tensor,
    weights: Tensor,
) -> Tensor:
    """Features and their derivatives on a curve of images that are combinations of a few.

    The first layer is linear, so that it is applied to the `r` directions instead of the `n` images.

    Args:
        embed: The patch embedding.
        constant: The class token and positions: the input of the first block without the patches, shape (R, N, D).
        features_of: Coefficients of features (K, R, n, D) from those of the first tokens (K, R, n, N, D), whose memory
            it may reuse. It skips the model's norms.
        directions: Shape (r, C, H, W), or (R, r, C, H, W) for stacked networks.
        weights: Coefficients of the images and of their derivatives up to the second, shape (K, n, r).

    Returns:
        Shape (K, n, D), or (R, K, n, D) for stacked networks.
    """
    assert embed.bias is not None
    factors = derivative_factors(weights).view(-1, 1, 1)
    coefficients = weights / factors
    spanned = spanned_tokens(embed, directions).flatten(2)
    constant = torch.cat([constant[:, :1], constant[:, 1:] + embed.bias.view(-1, 1, constant.shape[2])], 1)

    def features() -> Tensor:
        done = []
        for some in slices(weights.shape[1], TOKENS_AT_ONCE // (len(weights) * constant.numel())):
            done.append(features_of(_first_tokens(coefficients[:, some], spanned, constant)))
        return torch.cat(done, 2).transpose(0, 1) * factors

    found = features() if directions.device.type == "cpu" else check_once(features)
    return found if directions.ndim == 5 else found[0]


def _first_tokens(coefficients: Tensor, spanned: Tensor, constant: Tensor) -> Tensor:
    """Tokens (K, R, n, N, D) before the first block.

    Args:
        coefficients: Coefficients of the directions, shape (K, n, r).
        spanned: The directions' patches without bias, shape (R, r, P D).
        constant: Tokens of an image without the patches, shape (R, N, D).
    """
    num, points = coefficients.shape[:2]
    networks, _, width = constant.shape
    tokens = constant.new_zeros(num, networks, points, *constant.shape[1:])
    for out, some in zip(tokens, coefficients, strict=True):
        out[:, :, 1:] = torch.bmm(some.expand(networks, -1, -1), spanned).view(networks, points, -1, width)
    tokens[0] += constant.unsqueeze(1)
    return tokens


def blocks_along(tokens: Tensor, blocks: nn.ModuleList) -> Tensor:
    """Tokens (K, R, n, N, D) after the blocks, without norms; the memory of the input may be reused."""
    for module in blocks:
        block = cast("Block", module)
        tokens = add_attention(tokens, block.attn)
        add_mlp(tokens, block.mlp)
    return tokens
