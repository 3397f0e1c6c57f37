"""Plans the passes of each epoch, the number of steps and the learning rate of each step. Plain arithmetic."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from plugins.protocols import EpochSchedule, Schedule


class EpochPlan(NamedTuple):
    """One reporting epoch."""

    sizes: tuple[int, ...]
    """Number of images visited in each pass."""

    @property
    def num_images(self) -> int:
        """Number of training images visited in this epoch."""
        return sum(self.sizes)


def plan_epochs(passes: Sequence[float], *, num_images: int, num_epochs: int) -> tuple[EpochPlan, ...]:
    """Group passes into reporting epochs.

    An epoch ends after the first pass at which the total number of visits reaches the next multiple of `num_images`.
    With every curriculum, there are `num_epochs` epochs with `num_epochs * num_images` visits in total.

    Args:
        passes: Sizes of the passes as fractions of the training set, adding up to `num_epochs`.
        num_images: Size of the training set.
        num_epochs: Number of epochs.
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
    """Number of optimizer steps with a constant batch size. The batches of a pass differ by at most one image."""
    return sum(math.ceil(size / batch_size) for epoch in plan for size in epoch.sizes)


def steps_before(plan: Sequence[EpochPlan], epoch: int, batch_size: int) -> int:
    """Number of optimizer steps before an epoch, where epochs are numbered from 1."""
    return num_steps(plan[: epoch - 1], batch_size)


def learning_rate(
    done: int,
    *,
    unit: int,
    total: int,
    base: float,
    warmup: float,
    schedule: Schedule | EpochSchedule,
    num_epochs: int,
) -> float:
    """The learning rate of a step: linear warm-up to `base`, then `base` times the schedule's factor.

    Args:
        done: Number of previous steps (or image visits).
        unit: 1 if steps are counted; the number of images of this step if visits are counted.
        total: Number of steps (or image visits) of the whole training.
        base: Learning rate after warm-up.
        warmup: Fraction of the training during which the learning rate rises.
        schedule: Decay of the learning rate after warm-up, or by epochs.
        num_epochs: Number of epochs of the whole training.
    """
    warming_up = round(warmup * total)
    if not isinstance(schedule, EpochSchedule):
        if done < warming_up:
            return base * (done + unit) / (warming_up + unit)
        return base * schedule.factor((done - warming_up) / max(total - warming_up, 1))
    present = base * schedule.factor_after(num_epochs * done / total, num_epochs)
    return present * (done + unit) / (warming_up + unit) if done < warming_up else present


def batch_scale(rule: Literal["none", "linear", "sqrt"], batch_size: int, *, base: int) -> float:
    """Factor of the learning rate for a batch size.

    Args:
        rule: `linear` for the ratio of the batch sizes, `sqrt` for its square root, `none` for 1.
        batch_size: Number of images in a step.
        base: Batch size for which the learning rate is meant.

    Source: Goyal et al. 2017, arXiv:1706.02677 (linear); Krizhevsky 2014, arXiv:1404.5997 (square root).
    """
    ratio = batch_size / base
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
