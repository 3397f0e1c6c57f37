"""A learned model of the cost of trainings: time per epoch and memory, from closed forms of their shape.

Costs are sums of known amounts of work (multiply-accumulates, steps, weights moved, activations) times factors that are
fitted to trainings on the same machine. Factors are never negative, so that the model also holds for larger networks
than it has seen. Errors count relative to the cost, because costs differ by orders of magnitude. Without trainings, the
factors of a usual CPU core are taken; with few, all of them are scaled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from plugins.registry import load, parse_topology
from search_spaces.base import Costs, Growable, ImageTask
from search_spaces.ramps import largest
from trainers.config import Configuration

MIN_FITTED = 10
"""With fewer trainings, only the scale of a closed form is fitted."""
MOST_FITTED = 200
"""Number of newest trainings that are fitted."""
_MACS_PER_S = 15e9
"""Multiply-accumulates per second of a usual CPU core, in a training of small models."""
_STEP_S = 0.008
"""Time of a step whose arithmetic is negligible."""


class TrainingShape(NamedTuple):
    """What the cost of an epoch depends on."""

    parameters: float
    macs: float
    """Multiply-accumulates of one forward pass of one image."""
    depth: int
    """Number of blocks; 1 if the topology does not tell."""
    batch_size: float
    num_images: float
    """Training images visited per epoch."""
    epoch_macs: float
    """Multiply-accumulates of an epoch as planned: costs are learned from what is also known before a training."""
    pack_size: int = 1
    """Number of trainings computed together, which all take the time of the pack."""

    @classmethod
    def of(cls, configuration: Configuration, task: ImageTask, *, num_images: float) -> "TrainingShape":
        """The shape of a training, with its largest batch size.

        Args:
            configuration: The training.
            task: Image size, channels and classes of its data.
            num_images: Number of training images.
        """
        from trainers.training.course import planned_image_macs  # imports torch

        topology = parse_topology(configuration.topology)
        costs: Costs = load("spaces", configuration.topology.partition(":")[0]).costs(topology, task)
        return cls(
            parameters=float(costs.parameters),
            macs=float(costs.macs),
            depth=sum(topology.depths) if isinstance(topology, Growable) else 1,
            batch_size=float(largest(configuration.recipe.batch_size)),
            num_images=num_images,
            epoch_macs=planned_image_macs(configuration, task) * num_images,
        )

    @property
    def activations(self) -> float:
        """Activations of one image, in numbers, up to a constant: tokens times width times depth.

        Tokens are about MACs per parameter, and the width is about the root of the parameters of a block.
        """
        return self.macs / math.sqrt(max(self.parameters / self.depth, 1.0))


class ObservedCost(NamedTuple):
    """A training and its cost."""

    shape: TrainingShape
    cost: float


@dataclass(frozen=True)
class CostModel:
    """Predicts a cost. `fit_epoch_s` and `fit_memory_gib` make one.

    Args:
        features: Amounts of work of a shape.
        factors: Cost per unit of each.
    """

    features: Callable[[TrainingShape], tuple[float, ...]]
    factors: tuple[float, ...]

    def predict(self, shape: TrainingShape) -> float:
        """The cost of a training: seconds per epoch, or GiB."""
        return sum(amount * factor for amount, factor in zip(self.features(shape), self.factors, strict=True))


def usual_epoch_s(shape: TrainingShape) -> float:
    """Wall time of an epoch in seconds on one usual CPU core, from a closed form; right within a factor of about 3."""
    return shape.pack_size * (shape.epoch_macs / _MACS_PER_S + _num_steps(shape) * _STEP_S)


def fit_epoch_s(observed: Sequence[ObservedCost]) -> CostModel | None:
    """A model of the wall time of an epoch in seconds; `None` without observations.

    Args:
        observed: Trainings on one kind of device, oldest first, with their seconds per epoch.
    """
    return _fit(observed, _work, proportional_to=usual_epoch_s)


def fit_memory_gib(observed: Sequence[ObservedCost]) -> CostModel | None:
    """A model of the memory of a training in GiB; `None` without observations.

    Args:
        observed: Trainings on one kind of device, oldest first, with their memory.
    """
    return _fit(observed, _numbers, proportional_to=lambda shape: sum(_numbers(shape)[1:]))


class PredictionError(NamedTuple):
    """How well each training would have been predicted from those before it."""

    median: float
    """Median of |prediction / cost - 1|."""
    num_predicted: int


def prediction_error(
    observed: Sequence[ObservedCost], fit: Callable[[Sequence[ObservedCost]], CostModel | None] = fit_epoch_s
) -> PredictionError | None:
    """The error of a model that is fitted again after each training; `None` with fewer than 2 trainings.

    Args:
        observed: Trainings, oldest first, with their cost.
        fit: Fits the model.
    """
    newest = [one for one in observed if one.cost > 0][-MOST_FITTED:]
    errors = [
        abs(model.predict(one.shape) / one.cost - 1)
        for number, one in enumerate(newest)
        if (model := fit(newest[:number])) is not None
    ]
    return PredictionError(median(errors), len(errors)) if errors else None


def _num_steps(shape: TrainingShape) -> int:
    return math.ceil(shape.num_images / shape.batch_size)


def _work(shape: TrainingShape) -> tuple[float, ...]:
    """Amounts of work of an epoch: MACs, steps of a block, weights updated, activations, images."""
    num_steps = _num_steps(shape)
    alone = (
        shape.epoch_macs,
        num_steps * shape.depth,
        num_steps * shape.parameters,
        shape.num_images * shape.activations,
        shape.num_images,
    )
    return tuple(shape.pack_size * amount for amount in alone)


def _numbers(shape: TrainingShape) -> tuple[float, ...]:
    """Memory of a training: a constant, its weights and their copies, and the activations of a batch."""
    return (1.0, shape.pack_size * shape.parameters, shape.pack_size * shape.batch_size * shape.activations)


def _fit(
    observed: Sequence[ObservedCost],
    features: Callable[[TrainingShape], tuple[float, ...]],
    *,
    proportional_to: Callable[[TrainingShape], float],
) -> CostModel | None:
    """Least squares of the relative errors with factors of at least 0; few observations give a single factor."""
    newest = [one for one in observed if one.cost > 0 and proportional_to(one.shape) > 0][-MOST_FITTED:]
    if not newest:
        return None
    if len(newest) < MIN_FITTED:
        factor = median(one.cost / proportional_to(one.shape) for one in newest)
        return CostModel(lambda shape: (proportional_to(shape),), (factor,))
    import numpy as np
    from scipy.optimize import nnls

    relative: Any = np.array([[amount / one.cost for amount in features(one.shape)] for one in newest])
    scale = relative.max(axis=0)
    factors, _ = nnls(relative / np.where(scale > 0, scale, 1.0), np.ones(len(newest)))
    return CostModel(
        features, tuple(float(one) for one in np.where(scale > 0, factors / np.where(scale > 0, scale, 1.0), 0.0))
    )
