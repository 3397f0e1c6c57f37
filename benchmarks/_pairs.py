"""Paired comparisons: the mean difference of two ways over several seeds, with its 95 % interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class PairedDifference(NamedTuple):
    """Mean difference of pairs, and the ends of its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    def text(self, *, scale: float = 1.0, digits: int = 1) -> str:
        """The difference as `+3.1 [+1.0, +5.2]`, multiplied by `scale`."""
        mean, low, high = (scale * value for value in self)
        return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def paired_difference(with_it: Sequence[float], without: Sequence[float]) -> PairedDifference:
    """Compare two ways that were measured for the same seeds.

    Args:
        with_it: One result per seed, at least two seeds.
        without: The results of the other way for the same seeds.
    """
    differences = np.subtract(with_it, without)
    mean, count = float(differences.mean()), len(differences)
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / count**0.5)
    return PairedDifference(mean, mean - half, mean + half)
