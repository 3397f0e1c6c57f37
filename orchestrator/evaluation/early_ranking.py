"""How early trials can be compared: tau between the ranking at each epoch and the final one, from recorded curves."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.judging import MIN_POINTS, interval_of
from orchestrator.evaluation.rank_statistics import kendall_tau, resample_weights
from orchestrator.evaluation.verdict import EarlyJudgement, EpochAgreement

REDUCTION = 3
"""Factor between rungs by which the number of epochs grows and the number of trials shrinks."""

FEW_TRIALS = 10
"""With fewer trials, the advice recommends more trials."""


def judge_early(
    curves: Sequence[Sequence[float]], *, resamples: int, confidence: float, seed: int, threshold: float = 0.8
) -> EarlyJudgement | None:
    """Compare the ranking of trials at each epoch with their ranking after the last.

    Args:
        curves: Validation accuracies after each epoch, one curve per completed trial. All curves have the same length.
            Curves with a non-finite value are ignored.
        resamples: Number of bootstrap resamples of the trials.
        confidence: Confidence level of the intervals.
        seed: Seed of the resampling.
        threshold: Minimum tau of a reliable ranking.

    Returns:
        The judgement, or `None` if there is nothing to compare: fewer than `MIN_POINTS` curves, a single epoch, or
        equal final accuracies.

    Raises:
        ValueError: The curves differ in length.
    """
    if len(lengths := {len(curve) for curve in curves}) > 1:
        raise ValueError(
            f"the curves must have equal lengths, but have {sorted(lengths)} epochs. Compare trials of equal budget."
        )
    table = np.array([list(curve) for curve in curves if np.isfinite(curve).all()], dtype=float)
    if len(table) < MIN_POINTS or table.shape[1] < 2 or len(np.unique(table[:, -1])) == 1:
        return None
    weights = resample_weights(len(table), resamples=resamples, seed=seed)
    epochs = [
        EpochAgreement(
            epoch=index + 1, tau=interval_of(kendall_tau(weights, column, table[:, -1]), confidence, len(table))
        )
        for index, column in enumerate(table.T)
    ]
    first = _first_reliable(epochs, threshold)
    rungs = _rungs(first, len(epochs))
    return EarlyJudgement(
        epochs=epochs, first_reliable_epoch=first, rungs=rungs, advice=_advice(epochs, rungs, table, threshold)
    )


def _first_reliable(epochs: Sequence[EpochAgreement], threshold: float) -> int | None:
    first = None
    for agreement in reversed(epochs[:-1]):
        if agreement.tau.value is None or agreement.tau.value < threshold:
            break
        first = agreement.epoch
    return first


def _rungs(first: int | None, num_epochs: int) -> list[int]:
    rungs, epoch = [], first or num_epochs
    while epoch < num_epochs:
        rungs.append(epoch)
        epoch *= REDUCTION
    return rungs


def _advice(
    epochs: Sequence[EpochAgreement], rungs: Sequence[int], table: NDArray[np.float64], threshold: float
) -> str:
    """One sentence with actionable advice."""
    budget, count = len(epochs), len(table)
    more = f"; {count} trials are few, so check again with {FEW_TRIALS} or more" if count < FEW_TRIALS else ""
    if not rungs:
        return (
            f"Train every trial for all {budget} epochs: before the last epoch, the tau between the ranking and the "
            f"final ranking does not stay at {threshold:g} or above{more}."
        )
    tau = epochs[rungs[0] - 1].tau
    interval = "" if tau.low is None or tau.high is None else f" [{tau.low:.2f}, {tau.high:.2f}]"
    saved, lost = _replay(table, rungs)
    fate = "kept the best trial" if lost is None else f"lost the best trial at epoch {lost}"
    return (
        f"Stop the worse two thirds of the trials after {_listed(rungs)} of {budget} epochs, which would have saved "
        f"{saved:.0%} of the epochs of these trials and {fate}: from epoch {rungs[0]} on, the ranking agrees with the "
        f"final ranking (tau {tau.value:.2f}{interval} at epoch {rungs[0]}){more}."
    )


def _replay(table: NDArray[np.float64], rungs: Sequence[int]) -> tuple[float, int | None]:
    """Fraction of all epochs saved by stopping at the rungs, and the first rung after which no best trial is left."""
    left, saved, lost = np.arange(len(table)), 0, None
    for epoch in rungs:
        order = np.argsort(-table[left, epoch - 1], kind="stable")
        stopped = len(left) - math.ceil(len(left) / REDUCTION)
        left = left[order[: len(left) - stopped]]
        saved += stopped * (table.shape[1] - epoch)
        if lost is None and table[left, -1].max() < table[:, -1].max():
            lost = epoch
    return saved / table.size, lost


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
