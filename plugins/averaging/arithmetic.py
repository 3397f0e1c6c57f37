"""A choice of checkpoints and their weighted sum, shared by the averaging methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plugins.protocols import StateDict

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(checkpoints: Sequence[StateDict], weights: Sequence[float]) -> "dict[str, Tensor]":
    """Compute a weighted sum of checkpoints of one training, entry by entry.

    Args:
        checkpoints: State dicts, oldest first, with equal keys and shapes.
        weights: One factor per checkpoint.

    Returns:
        A new state dict. Floating-point entries are summed in float64 and cast back to their dtype. Other entries
        (step counters) are copied from the newest checkpoint.

    Raises:
        ValueError: There are no checkpoints, or their keys or shapes differ.
    """
    import torch

    check_alike(checkpoints)
    result: dict[str, torch.Tensor] = {}
    for name, newest in checkpoints[-1].items():
        if not newest.is_floating_point():
            result[name] = newest.clone()
            continue
        total = torch.zeros_like(newest, dtype=torch.float64)
        for checkpoint, weight in zip(checkpoints, weights, strict=True):
            total.add_(checkpoint[name].double(), alpha=weight)
        result[name] = total.to(newest.dtype)
    return result


def every_nth(checkpoints: Sequence[StateDict], *, window: int, spacing: int = 1) -> list[StateDict]:
    """`window` checkpoints, oldest first: every `spacing`-th one, counted back from the newest.

    Raises:
        ValueError: There are fewer than `num_spanned(window, spacing)` checkpoints.
    """
    needed = num_spanned(window, spacing)
    if window < 1 or spacing < 1 or needed > len(checkpoints):
        raise ValueError(
            f"`window` and `spacing` must be at least 1 and span no more than the {len(checkpoints)} checkpoints "
            f"saved, but got {window=}, {spacing=}, which span {needed}. Keep more checkpoints or lower `window` or "
            "`spacing`."
        )
    newest = len(checkpoints) - 1
    return [checkpoints[newest - back * spacing] for back in reversed(range(window))]


def num_spanned(window: int, spacing: int) -> int:
    """Number of newest checkpoints that `every_nth` needs."""
    return (window - 1) * spacing + 1


def copy_newest(checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
    """A copy of the newest checkpoint.

    Raises:
        ValueError: There are no checkpoints.
    """
    check_alike(checkpoints[-1:])
    return {name: value.clone() for name, value in checkpoints[-1].items()}


def check_alike(checkpoints: Sequence[StateDict]) -> None:
    """Raise ValueError unless there is at least one checkpoint and all have the same keys and shapes."""
    if not checkpoints:
        raise ValueError("averaging needs at least 1 checkpoint, but got none. Train first, or save more often.")
    newest = checkpoints[-1]
    for position, checkpoint in enumerate(checkpoints):
        if checkpoint.keys() != newest.keys():
            odd = sorted(checkpoint.keys() ^ newest.keys())[0]
            raise ValueError(
                f"checkpoints to average must be of one model, but only one of checkpoint {position + 1} of "
                f"{len(checkpoints)} and the newest has {odd!r}. Pass checkpoints of one training."
            )
        for name, value in checkpoint.items():
            if value.shape != newest[name].shape:
                raise ValueError(
                    f"checkpoints to average must be of one model, but {name!r} has the shapes {tuple(value.shape)} "
                    f"and {tuple(newest[name].shape)}. Pass checkpoints of one training."
                )
