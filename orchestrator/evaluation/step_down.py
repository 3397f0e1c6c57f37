"""Marks for many comparisons at once, with a bound on the chance of a single wrong one."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def shown_above_zero(replicates: Array, *, level: float) -> NDArray[np.bool_]:
    """Which of several statistics are shown to be above zero, all of them together at one error level.

    The statistics are divided by their bootstrap standard errors. In each resample, the largest deviation of all
    statistics from their estimates is taken, and its quantile is the bar that every statistic must clear. Statistics
    that cleared it are taken out, and the rest is compared with the lower bar of their own largest deviation, until
    none clears it. The chance that any statistic whose true value is 0 or less is marked is at most about `level`,
    however many there are and however strongly they depend on each other.

    Args:
        replicates: Each statistic in the sample (first column) and in the resamples, which must be the same draws for
            all statistics, shape (statistics, 1 + resamples). Undefined values are nan.
        level: Chance of a wrong mark, such as 0.025.

    Returns:
        One entry per statistic. A statistic that is undefined in the sample, or in most resamples, is not marked.

    Source: Romano & Wolf 2005, step-down multiple testing, algorithm 4.1, with studentised statistics.
    """
    values, resampled = replicates[:, 0], replicates[:, 1:]
    defined = ~np.isnan(resampled)
    usable = np.isfinite(values) & (2 * defined.sum(1) > resampled.shape[1])
    marked = np.zeros(len(values), dtype=bool)
    if not usable.any():
        return marked
    deviations = np.where(defined, resampled - values[:, None], 0.0)[usable]
    errors = np.sqrt((deviations**2).sum(1) / defined[usable].sum(1))
    errors = np.maximum(errors, _LEAST_ERROR)
    standardised = deviations / errors[:, None]
    found, left = values[usable] / errors, np.ones(int(usable.sum()), dtype=bool)
    while left.any():
        bar = float(np.quantile(standardised[left].max(0), 1 - level))
        cleared = left & (found > max(bar, 0.0))
        if not cleared.any():
            break
        left &= ~cleared
    marked[np.flatnonzero(usable)[~left]] = True
    return marked


_LEAST_ERROR = 1e-9
"""Standard error of a statistic that is the same in all resamples, such as the tau of a perfect ranking."""
