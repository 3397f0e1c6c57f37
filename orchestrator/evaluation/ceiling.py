"""The tau that a perfect score could reach, since accuracies after training are random themselves."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from orchestrator.evaluation.judging import MIN_FOR_INTERVAL
from orchestrator.evaluation.rank_statistics import Vector
from orchestrator.evaluation.verdict import Ceiling, Interval, Verdict

_TOO_GOOD, _FAR_AHEAD = 0.9, 0.1
"""Tau, and its difference from counting, from which a score is suspected to have seen the accuracies."""


def ceiling_of_seeds(seeds: Sequence[Sequence[float]], *, confidence: float) -> Ceiling | None:
    """The ceiling from several trainings of each topology.

    Args:
        seeds: Accuracies of each topology, one per training; numbers of trainings may differ.
        confidence: Confidence level of the intervals.

    Returns:
        `None` with fewer than two topologies, or if no topology was trained twice.

    Source: the intraclass correlation of means from a one-way analysis of variance, ICC(1, k), Shrout & Fleiss 1979.
    """
    groups = [np.asarray(row, dtype=float) for row in seeds]
    free = sum(len(row) - 1 for row in groups)
    if len(groups) < 2 or free == 0:
        return None
    within = sum(float(((row - row.mean()) ** 2).sum()) for row in groups) / free
    noise = float(np.mean([within / len(row) for row in groups]))
    means = np.array([row.mean() for row in groups])
    return _ceiling(
        means, noise, free, source="seeds", num_seeds=min(len(row) for row in groups), confidence=confidence
    )


def ceiling_of_images(accuracies: Sequence[float], num_images: int, *, confidence: float) -> Ceiling | None:
    """The ceiling from the binomial noise of accuracies that were measured on a number of images.

    The effect of the training seed is not part of this noise, so that the true ceiling may be lower. On the other hand,
    all topologies are measured on the same images, whose common difficulty changes no ranking.

    Args:
        accuracies: One per topology, as fractions.
        num_images: Number of images that measured each.
        confidence: Confidence level of the intervals.

    Returns:
        `None` with fewer than two topologies.
    """
    values = np.asarray(accuracies, dtype=float)
    if len(values) < 2:
        return None
    noise = float(np.mean(values * (1 - values))) / num_images
    return _ceiling(values, noise, math.inf, source="images", num_seeds=1, confidence=confidence)


def suspicion(verdict: Verdict, ceiling: Ceiling | None) -> str | None:
    """A note on a score that ranks so well that it may have seen the accuracies; `None` for any other.

    No published score comes near the accuracies, unless counting does so, too. And no score that has not seen them can
    know the noise of their training seeds.

    Args:
        verdict: The verdict on a single score that is no baseline.
        ceiling: The ceiling of the accuracies; `None` if their noise is unknown.
    """
    tau = verdict.tau
    if tau.value is None or verdict.num_topologies < MIN_FOR_INTERVAL:
        return None
    low = tau.value if tau.low is None else tau.low
    is_above = ceiling is not None and ceiling.source == "seeds" and low > (ceiling.tau.high or 0)
    ahead = min((gap.value for gap in verdict.minus.values() if gap.value is not None), default=0.0)
    if is_above or (low >= _TOO_GOOD and ahead >= _FAR_AHEAD):
        return (
            f"it ranks {'better than a perfect score would' if is_above else 'almost perfectly, far ahead of counting'}"
            ": make sure that it has not seen these accuracies, also not by being fitted to them"
        )
    return None


def have_no_verdict(ceiling: Ceiling | None, verdicts: Sequence[Verdict]) -> bool:
    """Whether the accuracies differ by no more than chance, so that no score can be judged by them.

    Noise estimated from several trainings decides this alone. That from the number of images is too large, since all
    topologies were measured on the same images: a score whose tau is shown to differ from 0 refutes it.

    Args:
        ceiling: The ceiling of the accuracies; `None` if their noise is unknown.
        verdicts: The verdicts on all scores.
    """
    if ceiling is None or not ceiling.may_be_chance:
        return False
    return ceiling.source == "seeds" or not any(row.above_zero or row.below_zero for row in verdicts)


def without_marks(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts, none of which shows anything."""
    return [row.model_copy(update={"above_zero": False, "below_zero": False, "beaten": ()}) for row in verdicts]


def _ceiling(
    values: Vector,
    noise: float,
    free: float,
    *,
    source: Literal["seeds", "images"],
    num_seeds: int,
    confidence: float,
) -> Ceiling:
    """The ceiling from one value per topology, the noise variance of such a value, and its degrees of freedom.

    `F = variance / noise` follows an F distribution if there are no true differences, and the reliability is
    `1 - 1 / F`. For normal accuracies, the expected tau between the true ranking and the measured one is
    `2 / pi * arcsin(sqrt(reliability))`, which is rising, so that the ends of the interval carry over.
    """
    from scipy import stats

    variance, degrees = float(values.var(ddof=1)), len(values) - 1
    most = math.inf if variance > 0 else 0.0
    ratio = variance / noise if noise > 0 else most
    null = stats.chi2(degrees, scale=1 / degrees) if math.isinf(free) else stats.f(degrees, free)
    tail = (1 - confidence) / 2
    low, high = (_reliability(ratio / float(null.ppf(quantile))) for quantile in (1 - tail, tail))
    reliability = Interval(value=_reliability(ratio), low=low, high=high)
    tau = Interval(value=_tau(_reliability(ratio)), low=_tau(low), high=_tau(high))
    return Ceiling(source=source, reliability=reliability, tau=tau, num_seeds=num_seeds)


def _reliability(ratio: float) -> float:
    return max(0.0, 1 - 1 / ratio) if ratio > 0 else 0.0


def _tau(reliability: float) -> float:
    return 2 / math.pi * math.asin(math.sqrt(reliability))
