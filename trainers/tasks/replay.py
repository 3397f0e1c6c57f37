"""Replays learning curves under a stopping criterion, to find the epochs saved and how much of the metric is lost."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from plugins.protocols import CurvePoint, Stopper, planned, reads_earlier_curves
from plugins.registry import create
from trainers.config import ReplayTask, TaskOutcome


class Replayed(NamedTuple):
    """Effect of a criterion on one curve."""

    epochs_saved: float
    """Fraction of the curve's epochs that would not have been trained."""
    accuracy_lost: float
    """How much worse the best epoch up to the stop is than the best of the whole curve, by the study's metric."""
    stopped_after: int | None
    """Epochs trained before the stop; `None` if the criterion never stopped."""


def replay(task: ReplayTask) -> TaskOutcome:
    """Replay every curve of the task; the metrics are means over the curves."""
    criterion: Stopper = create("stopping", task.criterion.name, task.criterion.settings)
    results = replay_curves(criterion, task.curves)
    return TaskOutcome(
        state="complete",
        metrics={
            "epochs_saved": fmean(result.epochs_saved for result in results),
            "accuracy_lost": fmean(result.accuracy_lost for result in results),
            "curves_stopped": fmean(result.stopped_after is not None for result in results),
        },
        details={"stopped_after": [result.stopped_after for result in results]},
    )


def replay_curves(criterion: Stopper, curves: Sequence[Sequence[CurvePoint]]) -> list[Replayed]:
    """Replay curves as if they had been trained one after another, in this order.

    A criterion that compares a training with earlier ones sees the best score with which one of them ended, without
    those that it stopped, and the scores of all of them up to where they ended or were stopped.

    Raises:
        ValueError: A curve has no points.
    """
    results: list[Replayed] = []
    best: float | None = None
    earlier: list[tuple[float, ...]] = []
    reads_curves = reads_earlier_curves(criterion)
    for curve in curves:
        results.append(replay_curve(criterion, curve, best=best, earlier=tuple(earlier)))
        end = results[-1].stopped_after
        if end is None:
            score = curve[-1].deciding
            best = score if best is None else max(best, score)
        if reads_curves:
            earlier.append(tuple(point.deciding for point in curve[:end]))
    return results


def replay_curve(
    criterion: Stopper,
    curve: Sequence[CurvePoint],
    *,
    best: float | None = None,
    earlier: tuple[tuple[float, ...], ...] = (),
) -> Replayed:
    """Replay one whole curve under a criterion. A stop at the last epoch saves nothing and does not count.

    Args:
        criterion: The criterion.
        curve: All epochs of a training.
        best: The best score with which an earlier training ended; `None` if there is none.
        earlier: The scores of earlier trainings after each of their epochs.

    Raises:
        ValueError: The curve has no points.
    """
    if not curve:
        raise ValueError("a learning curve must have at least 1 epoch, but got none. Omit trials without reports.")
    curve = planned(curve, num_epochs=len(curve), best=best, earlier=earlier)
    end = next((n for n in range(1, len(curve)) if criterion.reason_to_stop(curve[:n])), None)
    seen = curve[:end]
    lost = max(point.deciding for point in curve) - max(point.deciding for point in seen)
    return Replayed(1 - len(seen) / len(curve), lost, end)
