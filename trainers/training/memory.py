"""What a training does when a step runs out of memory: it computes the gradient in two parts from then on."""

import logging

import torch
from torch import Tensor

from plugins.protocols import LossInput
from trainers.training.failures import is_out_of_memory
from trainers.training.loss_needs import inputs_of
from trainers.training.ranks import AgreedMemoryError
from trainers.training.row import Row

DrawnMasks = Tensor | torch.Generator | None
"""Drop-path factors, a generator from which the model draws its own, or nothing."""

_MOST_PARTS = 2

logger = logging.getLogger(__name__)


def can_be_halved(row: Row, num_images: int, error: Exception) -> bool:
    """Whether a step that raised `error` may be tried again in halves: once, if it ran out of memory.

    With several ranks, all must know it; one that computed in halves alone would wait for sums of different steps.
    """
    if LossInput.MATE in inputs_of(row.recipe.loss):
        return False  # the two models of a step are computed together, and not in parts
    runs_out = is_out_of_memory(error) if row.ranks.count == 1 else isinstance(error, AgreedMemoryError)
    return runs_out and row.num_parts < _MOST_PARTS and num_images >= _MOST_PARTS * row.ranks.count


def halve(row: Row, num_images: int) -> None:
    """Compute the gradients of a row in halves from now on, and log it."""
    row.num_parts = _MOST_PARTS
    logger.warning(
        "Not enough memory for a step of %d images: the gradients are computed in %d parts from now on.",
        num_images,
        _MOST_PARTS,
    )


def state_of_draws(keep: DrawnMasks) -> Tensor | None:
    """State of the generator from which a model without known blocks draws its drop-path masks; otherwise `None`."""
    return keep.get_state() if isinstance(keep, torch.Generator) else None


def draw_again(keep: DrawnMasks, drawn: Tensor | None) -> None:
    """Set the generator back to a state from `state_of_draws`, so that a repeated step draws the same masks."""
    if drawn is not None and isinstance(keep, torch.Generator):
        keep.set_state(drawn)


def described_parts(row: Row) -> str | None:
    """The details of a training that ran out of memory and continued; `None` for others."""
    num_parts = max(one.num_parts for one in row.members())
    if num_parts == 1:
        return None
    return f"a step did not fit into memory, so gradients were computed in {num_parts} parts of each batch"
