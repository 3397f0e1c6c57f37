"""Values of images that a step may visit more than once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mean_of_visits(values: "Tensor", indices: "Tensor") -> "Tensor":
    """Values (B, D), averaged over the visits of each image, so that they can be stored in any order.

    Args:
        values: A row per visit, shape (B, D).
        indices: The image of each visit, shape (B,).
    """
    same = (indices[:, None] == indices[None, :]).to(values.dtype)
    means: Tensor = (same @ values) / same.sum(1, keepdim=True)
    return means
