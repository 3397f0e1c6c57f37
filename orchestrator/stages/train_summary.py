"""What a train stage says at its end: the best trial, the baseline it must beat, the front, and a peak passed over."""

from collections.abc import Sequence

from orchestrator.stages.context import StageContext
from orchestrator.stages.trade_off import ChosenTrial, describe_front
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import DecidingMetric
from plugins.metrics.names import metric_key

_CLEARLY_BETTER = 0.01
"""Difference of a fraction that is worth a remark."""


def measure_baseline(context: StageContext) -> dict[str, float]:
    """Validation metrics of a model that always predicts the largest class, by their keys."""
    from trainers.data.images import load_images
    from trainers.training.baseline import blind_evaluation

    data = load_images(context.spec.data)
    found = blind_evaluation(
        data.train.labels,
        data.validation.labels,
        num_classes=data.task.num_classes,
        metric=context.metric.choice,
    )
    return {metric_key(name): value for name, value in found.metrics.items()}


def against_baseline(value: float, baseline: float, metric: DecidingMetric) -> str:
    """The value of always predicting the largest class, and whether the best value is no better."""
    if metric.score(value) > metric.score(baseline):
        return f"predicting the largest class alone: {metric.text(baseline)}"
    return f"NOT better than predicting the largest class alone ({metric.text(baseline)})"


def lost_peak(best: TrialRecord, trials: Sequence[TrialRecord], metric: DecidingMetric) -> str | None:
    """A remark if a trial was clearly better than the best one, but not in its last epoch."""
    key = f"{metric.key}_best"
    peaked = [trial for trial in trials if key in trial.metrics and "best_epoch" in trial.metrics]
    if not peaked or not metric.is_fraction:
        return None
    peak = max(peaked, key=lambda trial: metric.score(trial.metrics[key]))
    if metric.score(peak.metrics[key]) < metric.score(best.metrics[metric.key]) + _CLEARLY_BETTER:
        return None
    return (
        f"trial {peak.number} had {metric.text(peak.metrics[key])} in epoch {peak.metrics['best_epoch']:.0f} "
        "(`rank_by: best` ranks by the best epoch)"
    )


def summary_line(
    context: StageContext,
    trials: Sequence[TrialRecord],
    chosen: ChosenTrial,
    *,
    ranked_by: str,
    baseline: float,
) -> str:
    """The line that ends a train stage.

    Args:
        context: The context of the stage.
        trials: All trials with a result.
        chosen: The trial for later stages.
        ranked_by: Key of the figure that ranks trials.
        baseline: Value of always predicting the largest class.
    """
    metric, best, cost = context.metric, chosen.trial, context.spec.cost
    value = best.metrics[ranked_by]
    parts = [f"{len(trials)} trials", f"best validation {metric.words} {metric.text(value)} (trial {best.number})"]
    if cost is not None:
        parts[-1] = f"chosen: trial {best.number}, validation {metric.words} {metric.text(value)}, {chosen.reason}"
        parts.append(f"front: {describe_front(chosen.front, ranked_by, metric, cost)}")
    parts.append(against_baseline(value, baseline, metric))
    remark = lost_peak(best, trials, metric) if ranked_by == metric.key and cost is None else None
    return "; ".join([*parts, *([remark] if remark else [])])
