"""95 % intervals of metrics over the choice of images."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers.results.model_report import Estimate

Measure = Callable[[Tensor, Tensor], float]
"""Maps logits (N, C) and labels (N,) to a metric."""
SEED = 0
_Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
_MAX_RESAMPLES, _MIN_RESAMPLES = 1000, 200
_MAX_VALUES = 200_000_000
"""Limit on the logits that all resamples of one metric contain together, unless `_MIN_RESAMPLES` exceed it."""


class Interval95(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def wilson_interval(successes: int, total: int) -> Interval95:
    """95 % interval of a proportion. Unlike the normal approximation, it stays within 0 and 1 and never collapses.

    Args:
        successes: Number of successes, from 0 to `total`.
        total: Number of trials, at least 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212; equation 4 of Brown, Cai and DasGupta 2001.
    """
    share, weight = successes / total, _Z**2 / total
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    # The bounds are exact at both ends; rounding must not move them.
    return Interval95(0.0 if successes == 0 else centre - half, 1.0 if successes == total else centre + half)


def stratified_resamples(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Indices (count, N) of resamples with replacement, each with as many images of each class as `labels` (N,)."""
    generator = np.random.default_rng(seed)
    found = labels.cpu().numpy()
    drawn = np.empty((count, len(found)), dtype=np.int64)
    start = 0
    for label in np.unique(found):
        members = np.flatnonzero(found == label)
        drawn[:, start : start + len(members)] = generator.choice(members, size=(count, len(members)))
        start += len(members)
    return torch.from_numpy(drawn)


def bootstrap_estimate(measure: Measure, logits: Tensor, labels: Tensor) -> Estimate:
    """A metric with the percentile interval of a bootstrap that is stratified by class, with a fixed seed.

    Args:
        measure: The metric.
        logits: Logits (N, C).
        labels: Labels (N,).

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    value = measure(logits, labels)
    count = int(min(_MAX_RESAMPLES, max(_MIN_RESAMPLES, _MAX_VALUES // max(1, logits.numel()))))
    values = np.array([measure(logits[rows], labels[rows]) for rows in stratified_resamples(labels, count, seed=SEED)])
    low, high = (float(one) for one in np.quantile(values, [0.025, 0.975]))
    if low == high:
        return Estimate(
            value=value, low=None, high=None, method="no interval: the metric is the same in all bootstrap resamples"
        )
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(high, value),
        method=f"percentile bootstrap, stratified by class, {count} resamples, seed {SEED}",
    )


def estimate(name: str, measure: Measure, logits: Tensor, labels: Tensor) -> Estimate:
    """A metric with its interval: Wilson's for `accuracy`, a bootstrap's for all others."""
    if name != "accuracy":
        return bootstrap_estimate(measure, logits, labels)
    right = int((logits.argmax(1) == labels).sum())
    low, high = wilson_interval(right, len(labels))
    return Estimate(value=measure(logits, labels), low=low, high=high, method="Wilson")
