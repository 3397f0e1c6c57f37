"""How much the attention of a block reads from each part of an image.

Legend: `B` images, `N` tokens, `H` heads.
"""

import math

import torch
from torch import Tensor


def grid_attention(weights: Tensor, *, num_class_tokens: int, by_class_token: bool) -> Tensor:
    """Share of each patch in the attention of one block.

    Args:
        weights: Attention weights, shape (B, H, N, N), of class tokens followed by a square grid of patches.
        num_class_tokens: Number of class tokens.
        by_class_token: Whether the classifier reads the first token; otherwise it reads the mean of the patches.

    Returns:
        Shape (B, rows, columns); sums to 1. What the class token attends to itself does not count. If that is all, the
        patches have equal shares.
    """
    queries = slice(0, 1) if by_class_token else slice(num_class_tokens, None)
    received = weights[:, :, queries, num_class_tokens:].float().mean((1, 2))
    received = received + torch.finfo(torch.float32).tiny
    side = math.isqrt(received.shape[-1])
    return (received / received.sum(-1, keepdim=True)).view(-1, side, side)
