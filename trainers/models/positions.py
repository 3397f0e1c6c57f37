"""Position embeddings for another grid of tokens than the one they were learned on."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CUBIC = -0.75
"""Slope of the cubic kernel at distance 1, as in torch's bicubic interpolation."""


def resize_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings of a grid, interpolated to a grid of `rows` x `columns` tokens.

    The interpolation is bicubic and keeps the corners of the image in place (`align_corners=False`), as DeiT does when
    the resolution changes. It is computed as a product with two small matrices, which is differentiable and works under
    `torch.func` on every device. A grid of the same size is returned unchanged.

    Args:
        positions: One embedding per token, shape (H, W, D).
        rows: Height of the new grid.
        columns: Width of the new grid.

    Returns:
        Shape (rows, columns, D), in the dtype of `positions` also under autocast.

    Source: Touvron et al. 2021, DeiT, arXiv:2012.12877 (fine-tuning at another resolution).
    """
    height, width = positions.shape[:2]
    if (height, width) == (rows, columns):
        return positions
    with torch.autocast(positions.device.type, enabled=False):
        down = torch.tensor(interpolation_matrix(height, rows), dtype=positions.dtype).to(positions.device)
        across = torch.tensor(interpolation_matrix(width, columns), dtype=positions.dtype).to(positions.device)
        tall = (down @ positions.flatten(1)).view(rows, width, -1)
        return across @ tall


@lru_cache(maxsize=256)
def interpolation_matrix(old: int, new: int) -> NDArray[np.float64]:
    """Weights (new, old) of cubic interpolation from a row of `old` cells to a row of `new` cells.

    It is computed with numpy because a tensor made within a `torch.func` transform must not outlive it.
    """
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers).astype(int)
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        cells = np.clip(first + offset, 0, old - 1)  # cells beyond the border repeat the last one
        np.add.at(matrix, (np.arange(new), cells), _cubic_weight(np.abs(centers - first - offset)))
    return matrix


def _cubic_weight(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution kernel at distances in [0, 2]."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    return np.where(distance <= 1, near, far)
