"""Which passes make an epoch, how many steps they take, and each step's learning rate. Plain arithmetic."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from plugins.protocols import Schedule


class EpochPlan(NamedTuple):
    """One reporting epoch."""

    sizes: tuple[int, ...]
    """Images visited in each of its passes."""

    @property
    def num_images(self) -> int:
        """Training images visited in this epoch."""
        return sum(self.sizes)


def plan_epochs(passes: Sequence[float], *, num_images: int, num_epochs: int) -> tuple[EpochPlan, ...]:
    """Group passes into reporting epochs.

    An epoch ends after the first pass at which the visits so far reach a multiple of `num_images`. Whatever the
    curriculum, there are `num_epochs` epochs with `num_epochs * num_images` visits in all.

    Args:
        passes: Sizes of the passes as fractions of the training set, adding up to `num_epochs`.
        num_images: Size of the training set.
        num_epochs: The budget.
    """
    total = num_epochs * num_images
    epochs: list[EpochPlan] = []
    sizes: list[int] = []
    visited = 0
    fractions = iter(passes)
    share = 0.0
    while visited < total:
        fraction = next(fractions, 1.0)  # rounding can leave a few images for one more pass
        share += fraction
        size = min(max(round(share * num_images) - visited, 1), num_images, total - visited)
        sizes.append(size)
        visited += size
        if visited >= (len(epochs) + 1) * num_images:
            epochs.append(EpochPlan(tuple(sizes)))
            sizes = []
    return tuple(epochs)


def num_steps(plan: Sequence[EpochPlan], batch_size: int) -> int:
    """Optimizer steps of epochs with one batch size. The batches of a pass differ by at most one image."""
    return sum(math.ceil(size / batch_size) for epoch in plan for size in epoch.sizes)


def steps_before(plan: Sequence[EpochPlan], epoch: int, batch_size: int) -> int:
    """Optimizer steps before an epoch, counted from 1."""
    return num_steps(plan[: epoch - 1], batch_size)


def learning_rate(done: int, *, unit: int, total: int, base: float, warmup: float, schedule: Schedule) -> float:
    """The rate of a step: linear warm-up to `base`, then `base` times the schedule's factor.

    Args:
        done: Steps or image visits before it.
        unit: 1 if steps are counted, the images of this step if visits are.
        total: Of the whole training.
        base: Rate once warm-up is over.
        warmup: Fraction of the training with a rising rate.
        schedule: How the rate falls afterwards.
    """
    warming_up = round(warmup * total)
    if done < warming_up:
        return base * (done + unit) / (warming_up + unit)
    return base * schedule.factor((done - warming_up) / max(total - warming_up, 1))
