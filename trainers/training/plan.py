"""The steps of a training, laid out before it starts: which passes make an epoch, and each step's learning rate."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from plugins.protocols import Schedule


class EpochPlan(NamedTuple):
    """One reporting epoch."""

    sizes: tuple[int, ...]
    """Images visited in each of its passes."""
    first_step: int
    """Optimizer steps before it."""

    @property
    def num_images(self) -> int:
        """Training images visited in this epoch."""
        return sum(self.sizes)


def plan_epochs(passes: Sequence[float], *, num_images: int, num_epochs: int, batch_size: int) -> tuple[EpochPlan, ...]:
    """Group passes into reporting epochs.

    An epoch ends after the first pass at which the visits so far reach a multiple of `num_images`. Whatever the
    curriculum, there are `num_epochs` epochs with `num_epochs * num_images` visits in all.

    Args:
        passes: Sizes of the passes as fractions of the training set, adding up to `num_epochs`.
        num_images: Size of the training set.
        num_epochs: The budget.
        batch_size: Largest number of images in a step.
    """
    total = num_epochs * num_images
    epochs: list[EpochPlan] = []
    sizes: list[int] = []
    visited = steps = first_step = 0
    fractions = iter(passes)
    share = 0.0
    while visited < total:
        fraction = next(fractions, 1.0)  # rounding can leave a few images for one more pass
        share += fraction
        size = min(max(round(share * num_images) - visited, 1), num_images, total - visited)
        sizes.append(size)
        visited += size
        steps += num_batches(size, batch_size)
        if visited >= (len(epochs) + 1) * num_images:
            epochs.append(EpochPlan(tuple(sizes), first_step))
            sizes, first_step = [], steps
    return tuple(epochs)


def num_batches(size: int, batch_size: int) -> int:
    """Steps in a pass of `size` images; its batches differ by at most one image."""
    return math.ceil(size / batch_size)


def num_steps(plan: Sequence[EpochPlan], batch_size: int) -> int:
    """Optimizer steps of a whole training."""
    return sum(num_batches(size, batch_size) for epoch in plan for size in epoch.sizes)


def learning_rate(step: int, *, total: int, base: float, warmup: float, schedule: Schedule) -> float:
    """The rate of a step, counted from 0: linear warm-up to `base`, then `base` times the schedule's factor."""
    warmup_steps = round(warmup * total)
    if step < warmup_steps:
        return base * (step + 1) / (warmup_steps + 1)
    return base * schedule.factor((step - warmup_steps) / max(total - warmup_steps, 1))
