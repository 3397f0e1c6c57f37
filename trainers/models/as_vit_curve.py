"""As-ViT's features and their derivatives along a curve of images, without normalisation and without autograd.

Legend: `K` derivatives (order + 1), `R` networks in a stack (1 for an ordinary model), `n` points of the curve, `r`
images that span it, `S` windows along a side. Tokens have shape (K, R, n S^2, N, D), window by window, within a stage
and (K, R, n, H, W, D), as a grid, between stages.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.models.as_vit_layers import PatchEmbedding, PatchMerging, StageBlocks, WindowAttention
from trainers.models.blocks import Block
from trainers.models.stacking import spanned_tokens
from trainers.models.taylor import (
    TOKENS_AT_ONCE,
    add_attention,
    add_mlp,
    check_once,
    derivative_factors,
    hidden_activations,
    products,
    scaled_layer,
    slices,
)


@torch.no_grad()
def grid_features_along(stages: Sequence[StageBlocks], directions: Tensor, weights: Tensor) -> Tensor:
    """Features of As-ViT and their derivatives on a curve of images that are combinations of a few.

    The first layer is linear, so that it is applied to the `r` directions instead of the `n` images.

    Args:
        stages: All stages of the model; their norms are skipped.
        directions: Shape (r, C, H, W), or (R, r, C, H, W) for stacked networks.
        weights: Coefficients of the images and of their derivatives up to the second, shape (K, n, r).

    Returns:
        Shape (K, n, D), or (R, K, n, D) for stacked networks.
    """
    if directions.device.type == "cpu":
        return _features_along(stages, directions, weights)
    return check_once(lambda: _features_along(stages, directions, weights))


def _features_along(stages: Sequence[StageBlocks], directions: Tensor, weights: Tensor) -> Tensor:
    num, points = weights.shape[:2]
    factors = derivative_factors(weights).view(-1, 1, 1)
    coefficients = weights / factors
    splits = [cast("WindowAttention", _blocks(stage)[0].attn).split for stage in stages]
    embed = cast("PatchEmbedding", stages[0].embed)
    spanned = spanned_tokens(embed.proj, F.pad(directions, embed.padding))
    networks, _, height, across = spanned.shape[:4]
    spanned = _to_windows(spanned.unsqueeze(0), splits[0])[0]
    grid = None
    for index, (stage, split) in enumerate(zip(stages, splits, strict=True)):
        width = _blocks(stage)[0].mlp.fc2.out_features
        done = []
        for some in slices(points, TOKENS_AT_ONCE // (num * networks * height * across * width)):
            if grid is None:
                tokens = _combine(coefficients[:, some], spanned, embed)
            else:
                tokens = _to_windows(grid[:, :, some], split)
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
        grid = torch.cat(done, 2)
        height, across = height // 2, across // 2
    assert grid is not None
    features = grid.transpose(0, 1) * factors
    return features if directions.ndim == 5 else features[0]


def _blocks(stage: StageBlocks) -> list[Block]:
    return [cast("Block", block) for block in stage.blocks]


def _combine(coefficients: Tensor, spanned: Tensor, embed: PatchEmbedding) -> Tensor:
    """First tokens (K, R, n S^2, N, D) from coefficients (K, n, r) and tokens of the directions (R, r S^2, N, D)."""
    num, points, directions = coefficients.shape
    networks, _, count, width = spanned.shape
    tokens = spanned.new_empty(num, networks, points, spanned[0].numel() // directions)
    for out, some in zip(tokens, coefficients, strict=True):
        torch.bmm(some.expand(networks, -1, -1), spanned.view(networks, directions, -1), out=out)
    tokens = tokens.view(num, networks, -1, count, width)
    assert embed.proj.bias is not None
    tokens[0] += embed.proj.bias.view(-1, 1, 1, width)
    return tokens


def _pool(tokens: Tensor, block: Block) -> Tensor:
    """Mean of the tokens (K, R, n, D) after the MLP, whose hidden activations are averaged before its last layer."""
    num, networks, points, count, _ = tokens.shape
    hidden = hidden_activations(tokens.flatten(2, 3), block.mlp).view(num, networks, points, count, -1).mean(3)
    weight, bias = scaled_layer(block.mlp.fc2, block.mlp.scale)
    added = products(hidden, weight)
    added[0] += bias
    return added.add_(tokens.mean(3))


def _merge(grid: Tensor, merging: PatchMerging) -> Tensor:
    """Patch merging of (K, R, n, H, W, D) as a convolution with stride 2, with a group of channels per network."""
    num, networks, points, height, across, width = grid.shape
    kernel = merging.kernel
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    images = grid.permute(0, 2, 3, 4, 1, 5).reshape(num * points, height, across, -1)
    if before != after:
        images = F.pad(images, merging.padding)
    weight = merging.reduction.weight.reshape(-1, kernel, kernel, width).permute(0, 3, 2, 1)
    padding = before if before == after else 0
    merged = F.conv2d(images.permute(0, 3, 1, 2), weight, None, 2, padding, groups=networks)
    merged = merged.permute(0, 2, 3, 1).view(num, points, height // 2, across // 2, networks, -1)
    return merged.permute(0, 4, 1, 2, 3, 5)


def _to_windows(grid: Tensor, split: int) -> Tensor:
    """From (K, R, n, H, W, D) to (K, R, n S^2, N, D), contiguous."""
    num, networks, _, height, across, width = grid.shape
    windows = grid.reshape(num, networks, -1, split, height // split, split, across // split, width)
    return windows.transpose(4, 5).reshape(num, networks, -1, height * across // split**2, width).contiguous()


def _to_grid(tokens: Tensor, split: int, height: int, across: int) -> Tensor:
    """From (K, R, n S^2, N, D) to (K, R, n, H, W, D)."""
    num, networks, width = *tokens.shape[:2], tokens.shape[-1]
    windows = tokens.view(num, networks, -1, split, split, height // split, across // split, width)
    return windows.transpose(4, 5).reshape(num, networks, -1, height, across, width)
