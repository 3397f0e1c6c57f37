"""Arithmetic that fits tensors of one model to another: selection, patches, grids and channels of other sizes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.models.positions import resize_positions


def even_indices(old: int, new: int) -> Tensor:
    """Indices (new,) of evenly spaced elements of a dimension, beginning with the first.

    Every k-th element is taken if `old` is k times `new`. Otherwise first and last element are included, and positions
    in between are rounded.

    Args:
        old: Size of the larger dimension.
        new: Size of the smaller dimension, at most `old`.

    Source: Xu et al. 2024, arXiv:2311.18823, uniform element selection, as in the authors' code.
    """
    if not 1 <= new <= old:
        raise ValueError(f"`new` must lie between 1 and {old=}, but got {new}. Select from a larger dimension.")
    if old % new == 0:
        return torch.arange(new) * (old // new)
    return torch.tensor(np.linspace(0, old - 1, new).round().astype(np.int64))


def select_evenly(tensor: Tensor, old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> Tensor | None:
    """Evenly spaced elements of a tensor along each of its dimensions.

    A dimension may consist of several factors, such as heads and channels of a head. Elements are then selected within
    each factor, so that a head of the result comes from one head.

    Args:
        tensor: The larger tensor.
        old: Factors of each of its dimensions; their product is the size.
        new: Factors of each dimension of the result, as many as in `old`.

    Returns:
        `None` if the result is larger in any factor.
    """
    for dimension, (factors, wanted) in enumerate(zip(old, new, strict=True)):
        if len(factors) != len(wanted) or any(one < other for one, other in zip(factors, wanted, strict=True)):
            return None
        if tuple(factors) != tuple(wanted):
            positions = torch.arange(math.prod(factors)).view(*factors)
            for place, (one, other) in enumerate(zip(factors, wanted, strict=True)):
                positions = positions.index_select(place, even_indices(one, other))
            tensor = tensor.index_select(dimension, positions.flatten())
    return tensor


def crop_kernel(weight: Tensor, old: int, new: int, *, offset: int, fill: float = 0.0) -> Tensor:
    """The part of square kernels (..., old, old) that a smaller kernel covers, or the kernels padded to a larger one.

    Args:
        weight: The kernels.
        old: Their side.
        new: The new side.
        offset: Place of the new kernel's first row and column in the old kernel; negative if it begins before.
        fill: Value of the padding.
    """
    after = new - old + offset
    return F.pad(weight, (-offset, after, -offset, after), value=fill)


def resize_patches(weight: Tensor, side: int) -> Tensor:
    """Weights (D, C, side, side) of a patch embedding for patches of another size.

    The result responds to a resized patch as the given weights respond to the original patch, as closely as possible:
    it is the least-squares solution under bilinear resizing.

    Args:
        weight: Weights (D, C, K, K) for patches of K x K pixels.
        side: The new side.

    Source: Beyer et al. 2023, FlexiViT, arXiv:2212.08013, PI-resize (section 3.4).
    """
    old = weight.shape[-1]
    if old == side:
        return weight
    units = torch.eye(old, dtype=torch.float64)[None, :, :, None]
    resize = F.interpolate(units, size=(side, 1), mode="bilinear", antialias=side < old)[0, :, :, 0].t()
    fit = torch.linalg.pinv(resize.t())
    resized: Tensor = fit @ weight.double() @ fit.t()
    return resized.to(weight.dtype)


def resize_grid(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (H, W, D) of a grid for `side` x `side` tokens; see `resize_positions`."""
    return resize_positions(positions, side, side)


def change_channels(weight: Tensor, channels: int) -> Tensor:
    """Weights (D, C, K, K) of the first convolution for images with another number of channels.

    The response to a grey image is the same: weights are summed for one channel, and shared evenly otherwise.
    """
    if weight.shape[1] == channels:
        return weight
    grey = weight.sum(1, keepdim=True)
    return grey.repeat(1, channels, 1, 1) / channels
