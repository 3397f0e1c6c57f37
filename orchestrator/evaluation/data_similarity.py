"""How much two data sets differ in what matters for the choice of a model, from their descriptions alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from trainers.data.report import DataReport

NEAR = 2.0
"""Data sets up to this distance are near: one or two notable differences."""


class DataDifference(NamedTuple):
    """One respect in which two data sets differ."""

    amount: float
    """Size of the difference; 1 is notable."""
    text: str
    """The difference in words."""


class DataDistance(NamedTuple):
    """How much two data sets differ."""

    total: float
    """Root of the sum of the squared amounts; 0 for equal descriptions."""
    differences: tuple[DataDifference, ...]
    """The largest first; without those that are not worth mentioning."""

    @property
    def is_near(self) -> bool:
        """Whether what worked on one can be expected to be a good start on the other."""
        return self.total <= NEAR


def distance_between(data: DataReport, other: DataReport) -> DataDistance:
    """How much another data set differs from one.

    A difference of 1 is a factor of 4 in training images, a factor of 2 in classes or in the side of the images, colour
    instead of grey, or 0.15 in the mean or the standard deviation of the pixels (from 0 to 1), or in how evenly the
    images are spread over the classes (normalised entropy). These scales are judgements, not measurements.

    Args:
        data: The data set for which a model is wanted.
        other: The data set of an earlier study.
    """
    size, other_size = _num_train(data), _num_train(other)
    found = [
        _ratio(size, other_size, 4.0, f"{other_size:,} training images instead of {size:,}"),
        _ratio(
            len(data.classes), len(other.classes), 2.0, f"{len(other.classes)} classes instead of {len(data.classes)}"
        ),
        _ratio(
            data.image_size,
            other.image_size,
            2.0,
            f"models for {other.image_size} instead of {data.image_size} pixels",
        ),
        DataDifference(float(data.channels != other.channels), f"{other.colours} instead of {data.colours} images"),
        _shift(_mean(data.mean), _mean(other.mean), "a brightness of the pixels"),
        _shift(_mean(data.std), _mean(other.std), "a contrast of the pixels"),
        _shift(_evenness(data), _evenness(other), "an evenness of the class sizes"),
    ]
    found.sort(key=lambda one: -one.amount)
    total = math.sqrt(sum(one.amount**2 for one in found))
    return DataDistance(total, tuple(one for one in found if one.amount >= _WORTH_MENTIONING))


_WORTH_MENTIONING = 0.2
_SHIFT = 0.15


def _num_train(data: DataReport) -> int:
    return data.parts["train"].num_images


def _ratio(one: float, other: float, notable: float, text: str) -> DataDifference:
    return DataDifference(abs(math.log(max(other, 1) / max(one, 1))) / math.log(notable), text)


def _shift(one: float, other: float, name: str) -> DataDifference:
    return DataDifference(abs(other - one) / _SHIFT, f"{name} of {other:.2f} instead of {one:.2f}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _evenness(data: DataReport) -> float:
    """Entropy of the class sizes of the training part as a fraction of that of equal sizes; 1 for a single class."""
    counts = [count for count in data.parts["train"].per_class.values() if count]
    if len(counts) < 2:
        return 1.0
    total = sum(counts)
    entropy = -sum(count / total * math.log(count / total) for count in counts)
    return entropy / math.log(len(counts))
