"""As-ViT's features and their derivatives along a curve of images, without normalisation and without autograd.

Legend: `K` derivatives (order + 1), `n` points of the curve, `r` images that span it, `S` windows along a side. Tokens
have shape (K, n S^2, N, D), window by window, within a stage and (K, n, H, W, D), as a grid, between stages.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.models.as_vit_layers import PatchEmbedding, PatchMerging, StageBlocks, WindowAttention
from trainers.models.blocks import Block
from trainers.models.taylor import (
    TOKENS_AT_ONCE,
    add_attention,
    add_mlp,
    derivative_factors,
    hidden_activations,
    scaled_layer,
    slices,
)


@torch.no_grad()
def grid_features_along(stages: Sequence[StageBlocks], directions: Tensor, weights: Tensor) -> Tensor:
    """Features of As-ViT and their derivatives on a curve of images that are combinations of a few.

    The first layer is linear, so that it is applied to the `r` directions instead of the `n` images.

    Args:
        stages: All stages of the model; their norms are skipped.
        directions: Shape (r, C, H, W).
        weights: Coefficients of the images and of their derivatives up to the second, shape (K, n, r).

    Returns:
        Shape (K, n, D).
    """
    num, points = weights.shape[:2]
    factorials = derivative_factors(weights)
    coefficients = weights / factorials
    splits = [cast("WindowAttention", _blocks(stage)[0].attn).split for stage in stages]
    embed = cast("PatchEmbedding", stages[0].embed)
    spanned = F.conv2d(F.pad(directions, embed.padding), embed.proj.weight, None, embed.proj.stride)
    height, across = spanned.shape[-2:]
    spanned = _to_windows(spanned.permute(0, 2, 3, 1).unsqueeze(0), splits[0])
    grid = None
    for index, (stage, split) in enumerate(zip(stages, splits, strict=True)):
        width = _blocks(stage)[0].mlp.fc2.out_features
        done = []
        for some in slices(points, TOKENS_AT_ONCE // (num * height * across * width)):
            if grid is None:
                tokens = _combine(coefficients[:, some], spanned, embed)
            else:
                tokens = _to_windows(grid[:, some], split)
            *blocks, last = _blocks(stage)
            for block in blocks:
                tokens = add_attention(tokens, block.attn)
                add_mlp(tokens, block.mlp)
            tokens = add_attention(tokens, last.attn)
            if stage is stages[-1]:
                done.append(_pool(tokens, last))
                continue
            add_mlp(tokens, last.mlp)
            merging = cast("PatchMerging", stages[index + 1].embed)
            done.append(_merge(_to_grid(tokens, split, height, across), merging))
        grid = torch.cat(done, 1)
        height, across = height // 2, across // 2
    assert grid is not None
    return grid * factorials


def _blocks(stage: StageBlocks) -> list[Block]:
    return [cast("Block", block) for block in stage.blocks]


def _combine(coefficients: Tensor, spanned: Tensor, embed: PatchEmbedding) -> Tensor:
    """First tokens (K, n S^2, N, D) from coefficients (K, n, r) and the tokens of the directions (1, r S^2, N, D)."""
    num, _, directions = coefficients.shape
    tokens = torch.matmul(coefficients, spanned.view(directions, -1)).view(num, -1, *spanned.shape[2:])
    assert embed.proj.bias is not None
    tokens[0] += embed.proj.bias
    return tokens


def _pool(tokens: Tensor, block: Block) -> Tensor:
    """Mean of the tokens (K, n, D) after the MLP, whose hidden activations are averaged before its last layer."""
    num, points, count, _ = tokens.shape
    hidden = hidden_activations(tokens.flatten(1, 2), block.mlp).view(num, points, count, -1).mean(2)
    weight, bias = scaled_layer(block.mlp.fc2, block.mlp.scale)
    added = torch.matmul(hidden, weight.t())
    added[0] += bias
    return tokens.mean(2) + added


def _merge(grid: Tensor, merging: PatchMerging) -> Tensor:
    """Patch merging as a convolution of (K, n, H, W, D) with stride 2."""
    num, points, height, across, width = grid.shape
    kernel = merging.kernel
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    images = grid.reshape(num * points, height, across, width)
    if before != after:
        images = F.pad(images, merging.padding)
    weight = merging.reduction.weight.view(-1, kernel, kernel, width).permute(0, 3, 2, 1)
    merged = F.conv2d(images.permute(0, 3, 1, 2), weight, None, 2, before if before == after else 0)
    return merged.permute(0, 2, 3, 1).reshape(num, points, height // 2, across // 2, -1)


def _to_windows(grid: Tensor, split: int) -> Tensor:
    """From (K, n, H, W, D) to (K, n S^2, N, D), contiguous."""
    num, _, height, across, width = grid.shape
    windows = grid.reshape(num, -1, split, height // split, split, across // split, width)
    return windows.transpose(3, 4).reshape(num, -1, height * across // split**2, width).contiguous()


def _to_grid(tokens: Tensor, split: int, height: int, across: int) -> Tensor:
    """From (K, n S^2, N, D) to (K, n, H, W, D)."""
    num, width = tokens.shape[0], tokens.shape[-1]
    windows = tokens.view(num, -1, split, split, height // split, across // split, width)
    return windows.transpose(3, 4).reshape(num, -1, height, across, width)
