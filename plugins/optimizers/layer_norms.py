"""Norms of each parameter in a row, and products of each parameter with a number; for layer-wise rates."""

from typing import TYPE_CHECKING

from plugins.protocols import ParameterLayout

if TYPE_CHECKING:
    from torch import Tensor


def norms_of(layout: ParameterLayout, row: "Tensor") -> "Tensor":
    """Euclidean norm of each parameter in a row (P,), in the order of `layout.names`."""
    import torch

    return torch.stack(torch._foreach_norm(layout.views(row)))


def scale_each(layout: ParameterLayout, row: "Tensor", factors: "Tensor") -> None:
    """Multiply each parameter in a row (P,) by its factor, in place; `factors` is in the order of `layout.names`."""
    import torch

    torch._foreach_mul_(layout.views(row), list(factors.unbind()))
