"""Estimates the time of trainings from closed forms, without training."""

import math
from collections.abc import Sequence
from statistics import fmean

from plugins import registry
from search_spaces.base import Costs, ImageTask
from search_spaces.ramps import Ramp
from trainers.config import Configuration

_MACS_PER_S = 15e9
"""Multiply-accumulates per second of one CPU core, in a training of small models."""
_STEP_S = 0.008
"""Time of a step whose arithmetic is negligible."""
_FORWARD_PASSES = 3
"""A step takes as long as this many forward passes: one, and a backward pass that counts as two."""


def training_s(configurations: Sequence[Configuration]) -> float:
    """Estimated seconds of a training on one CPU core: the mean of `configurations`, which must not be empty.

    The estimate decides only whether several workers are worth starting. It is right within a factor of about 3.
    """
    from trainers.data.images import load_images  # imports torch

    data = load_images(configurations[0].data)
    return fmean(_seconds(one, data.task, num_images=len(data.train)) for one in configurations)


def _seconds(configuration: Configuration, image_task: ImageTask, *, num_images: int) -> float:
    topology = registry.parse_topology(configuration.topology)
    costs: Costs = registry.load("spaces", configuration.topology.partition(":")[0])().costs(topology, image_task)
    size = configuration.recipe.batch_size
    num_steps = math.ceil(num_images / (size.end if isinstance(size, Ramp) else size))
    epoch_s = num_steps * _STEP_S + _FORWARD_PASSES * costs.macs * num_images / _MACS_PER_S
    return configuration.epochs * epoch_s
