"""What a training does when a step runs out of memory: it computes the gradient in two parts from then on."""

import logging
from typing import TYPE_CHECKING

import torch

from trainers.training.failures import is_out_of_memory
from trainers.training.row import Row

if TYPE_CHECKING:
    from trainers.training.step import Batch

_MOST_PARTS = 2

logger = logging.getLogger(__name__)


def can_be_halved(batch: "Batch", error: Exception) -> bool:
    """Whether the step of a batch that raised `error` may be tried again in halves: once, if it ran out of memory."""
    return is_out_of_memory(error) and batch.row.num_parts < _MOST_PARTS and len(batch.labels) > 1


def halve(batch: "Batch", drawn: torch.Tensor | None) -> None:
    """Compute the gradients of a row in halves from now on, and log it.

    Args:
        batch: The batch that did not fit.
        drawn: State of the generator from which the model draws, before the step; see `state_of_draws`.
    """
    batch.row.num_parts = _MOST_PARTS
    if drawn is not None and isinstance(batch.keep, torch.Generator):
        batch.keep.set_state(drawn)
    logger.warning(
        "Not enough memory for a step of %d images: the gradients are computed in %d parts from now on.",
        len(batch.labels),
        _MOST_PARTS,
    )


def state_of_draws(batch: "Batch") -> torch.Tensor | None:
    """State of the generator from which a model without known blocks draws its drop-path masks; otherwise `None`."""
    return batch.keep.get_state() if isinstance(batch.keep, torch.Generator) else None


def described_parts(row: Row) -> str | None:
    """The details of a training that ran out of memory and continued; `None` for others."""
    num_parts = max(row.num_parts, 1 if row.peer is None else row.peer.num_parts)
    if num_parts == 1:
        return None
    return f"a step did not fit into memory, so gradients were computed in {num_parts} parts of each batch"
