"""Compares trainings, some of which were ended early, at an epoch that enough of them have reached."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.evaluation.judging import MIN_POINTS


class Training(NamedTuple):
    """A training of a topology."""

    topology: str
    value: float | None
    """Its result, higher is better; `None` if a scheduler or a budget ended it before its last epoch."""
    curve: Sequence[float]
    """The validation metric after each epoch, higher is better."""


class ComparedTrainings(NamedTuple):
    """Topologies with the values of their trainings at one epoch."""

    epoch: int | None
    """The epoch, starting at 1; `None` if results are compared."""
    values: dict[str, list[float]]
    """Values by topology, one per training that reached the epoch."""
    num_left_out: int
    """Number of topologies without such a training."""


def compare_trainings(trainings: Sequence[Training], *, num_epochs: int, by_best_epoch: bool) -> ComparedTrainings:
    """Compare topologies at the largest epoch that enough of them have reached.

    Enough are half of the topologies, and at least `MIN_POINTS` of them (or all, if there are fewer). The more
    trainings go on, the later the epoch is; if it is the last one, results are compared. A training that ended by
    itself, such as by its stopping criterion, has reached every epoch, with its last values.

    Args:
        trainings: At least one; several of a topology with different seeds.
        num_epochs: Number of epochs of a whole training.
        by_best_epoch: Whether the best value up to an epoch counts, instead of the value after it.
    """
    reached: dict[str, int] = {}
    for training in trainings:
        length = len(training.curve) if training.value is None else num_epochs
        reached[training.topology] = max(length, reached.get(training.topology, 0))
    enough = min(len(reached), max(MIN_POINTS, math.ceil(len(reached) / 2)))
    epoch = sorted(reached.values(), reverse=True)[enough - 1]
    values: dict[str, list[float]] = {}
    for training in trainings:
        if epoch >= num_epochs:
            value = training.value
        elif training.value is None and len(training.curve) < epoch:
            value = None
        else:
            until = training.curve[:epoch]
            value = max(until) if by_best_epoch else until[-1]
        if value is not None:
            values.setdefault(training.topology, []).append(value)
    return ComparedTrainings(
        epoch=None if epoch >= num_epochs else epoch, values=values, num_left_out=len(reached) - len(values)
    )
