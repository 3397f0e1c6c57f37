"""Rank statistics between training-free scores and trained accuracy: Kendall's tau-b with a bootstrap interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

MIN_POINTS = 4
"""Fewer topologies than this give no tau worth printing."""

Direction = Literal["maximize", "minimize"]


class Interval(BaseModel):
    """A statistic with a percentile bootstrap interval; `None` where it is undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: float | None
    low: float | None
    high: float | None


class ProxyCorrelation(BaseModel):
    """How well one proxy ranked the topologies."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    proxy: str
    num_topologies: int
    tau: Interval
    """Kendall's tau-b between accuracy and the score, oriented so that 1 is a perfect ranking."""
    tau_minus_baseline: Interval | None
    """Paired difference from the baseline's tau on the same resamples; `None` for the baseline itself."""
    note: str | None = None
    """Why a value is missing, or what to be careful about."""

    @property
    def beats_baseline(self) -> bool:
        """Whether the interval of the difference from the baseline lies above zero."""
        difference = self.tau_minus_baseline
        return difference is not None and difference.low is not None and difference.low > 0


def correlate(
    scores: Mapping[str, Sequence[float]],
    accuracy: Sequence[float],
    *,
    directions: Mapping[str, Direction],
    baseline: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[ProxyCorrelation]:
    """Kendall's tau-b of every proxy with accuracy over the same topologies, best first.

    Topologies are resampled with replacement, the same ones for every proxy, so that differences from the baseline are
    paired. A proxy's non-finite scores are left out of its own tau, and said in its note.

    Args:
        scores: Per proxy, one score per topology.
        accuracy: One accuracy per topology.
        directions: Which way each proxy is better; a minimised score is negated before ranking.
        baseline: The proxy that the others are compared with; a key of `scores`.
        resamples: Number of bootstrap resamples.
        confidence: Mass of the interval, such as 0.95.
        seed: Seed of the resampling.

    Source: Kendall 1945 (tau-b); Efron 1979 (bootstrap).
    """
    truth = np.asarray(accuracy, dtype=float)
    oriented = {
        name: np.asarray(values, dtype=float) * (1.0 if directions[name] == "maximize" else -1.0)
        for name, values in scores.items()
    }
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(truth), size=(resamples, len(truth))) if len(truth) else np.empty((0, 0), dtype=int)
    replicates = {
        name: np.array([kendall_tau(values[rows], truth[rows]) for rows in draws]) for name, values in oriented.items()
    }
    points = {name: kendall_tau(values, truth) for name, values in oriented.items()}
    rows = [
        ProxyCorrelation(
            proxy=name,
            num_topologies=int(np.isfinite(values).sum()),
            tau=_interval(points[name], replicates[name], confidence),
            tau_minus_baseline=None
            if name == baseline
            else _interval(points[name] - points[baseline], replicates[name] - replicates[baseline], confidence),
            note=_note(values, truth),
        )
        for name, values in oriented.items()
    ]
    return sorted(rows, key=lambda row: -math.inf if row.tau.value is None else row.tau.value, reverse=True)


def kendall_tau(scores: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's tau-b, shape (n,) against (n,); NaN for fewer than `MIN_POINTS` finite pairs or a constant."""
    finite = np.isfinite(scores) & np.isfinite(truth)
    if finite.sum() < MIN_POINTS:
        return math.nan
    return float(stats.kendalltau(scores[finite], truth[finite], variant="b").statistic)


def _interval(value: float, replicates: np.ndarray, confidence: float) -> Interval:
    if math.isnan(value):
        return Interval(value=None, low=None, high=None)
    usable = replicates[~np.isnan(replicates)]
    if len(usable) < 20:
        return Interval(value=value, low=None, high=None)
    tail = (1 - confidence) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))


def _note(scores: np.ndarray, truth: np.ndarray) -> str | None:
    finite = np.isfinite(scores)
    if finite.sum() < MIN_POINTS:
        return f"needs at least {MIN_POINTS} scored topologies, but there are {int(finite.sum())}"
    if len(np.unique(scores[finite])) == 1:
        return "the score is the same for every topology"
    if len(np.unique(truth)) == 1:
        return "every topology reached the same accuracy"
    if not finite.all():
        return f"{int((~finite).sum())} topologies have no finite score and are left out"
    return None
