"""The result of a `train` stage: its trials and their order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from orchestrator.engines.interfaces import Objective
from orchestrator.spec.cost import Cost
from orchestrator.stages.certainty import RankingCertainty
from orchestrator.stages.context import StageContext
from orchestrator.stages.kind import StageResult
from orchestrator.stages.retention import CUT
from orchestrator.stages.starting_weights import StartingWeights
from orchestrator.stages.teaching import StageTeacher
from orchestrator.stages.time_left import CostError
from orchestrator.stages.train_spec import TrainStage
from orchestrator.stages.train_summary import against_baseline
from orchestrator.stages.warm_start import WarmStarted
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.metrics.names import RECORDED_METRICS, metric_key
from search_spaces.dimensions import Point


class TrainedTrial(StageResult):
    """A trial that ended with a result."""

    trial: int
    state: Literal["complete", "stopped"]
    topology: str
    val_accuracy: float
    value: float | None = None
    """The figure by which it is ranked; `None`, in results of version 0.1.0, means that it is the accuracy."""
    has_base_recipe: bool
    """Whether the trial used the base recipe and no scheduler ended it; accuracies of such trials are comparable."""


class LeaderboardRow(StageResult):
    """A trial with its sampled point: one key per dimension, such as `recipe.learning_rate`."""

    model_config = ConfigDict(extra="allow")
    trial: int
    state: Literal["complete", "stopped"]
    val_accuracy: float
    val_loss: float
    topology: str


class TrainResult(StageResult):
    """The trained trials."""

    candidates: tuple[str, ...]
    """Candidate topologies. The first trials train them in this order with the base recipe, `repeats` times."""
    num_candidates: int
    metric: DecidingMetric = ACCURACY
    """The study's metric."""
    ranked_by: str = ACCURACY.key
    """The figure by which the trials are ordered: the metric's value after the last epoch, or the best one."""
    baseline: dict[str, float] = Field(default_factory=dict)
    """Validation metrics of always predicting the largest class; empty in results of version 0.1.0."""
    best: LeaderboardRow
    leaderboard: tuple[LeaderboardRow, ...]
    """The ten best trials."""
    trials: tuple[TrainedTrial, ...] = ()
    """All trials with a result, by number. Version 0.1.0 stored none; `StageContext.earlier` adds them to its rows."""
    cost: Cost | None = None
    """The second objective; `None` if the study has one."""
    front: tuple[LeaderboardRow, ...] = ()
    """The Pareto front of a study with two objectives, the cheapest trial first. `best` is the one that was chosen."""
    chosen: str | None = None
    """Why `best` was chosen from the front."""
    num_failed: int
    weights: StartingWeights | None = None
    """The weights that the trials started from; `None` for random weights."""
    teacher: StageTeacher | None = None
    """The model that the trials learned from; `None` for none."""
    warm_start: WarmStarted | None = None
    """What the search was warm-started from."""
    certainty: RankingCertainty | None = None
    """How likely the best trial is really the best; `None` for a single trial, and in results of version 0.1.0."""
    time_error: CostError | None = None
    """How well the time per epoch was predicted; `None` with fewer than 2 trials, and in results of version 0.1.0."""


def ranking(context: StageContext, spec: TrainStage) -> Objective:
    """The figure by which trials are ranked."""
    return ranking_by(context.metric, spec)


def ranking_by(metric: DecidingMetric, spec: TrainStage) -> Objective:
    """The figure by which trials are ranked in a study that decides by a metric."""
    last = Objective.of(metric)
    return last._replace(metric=f"{last.metric}_best") if spec.rank_by == "best" else last


def sort_trials(trials: Sequence[TrialRecord], objectives: tuple[Objective, ...]) -> list[TrialRecord]:
    """Trials by the first objective, best first; ties go to the lower validation loss."""
    from orchestrator.stages.searching import is_better

    ordered: list[TrialRecord] = []
    for trial in trials:
        place = next(
            (index for index, other in enumerate(ordered) if is_better(trial, other, objectives)), len(ordered)
        )
        ordered.insert(place, trial)
    return ordered


def leaderboard_row(trial: TrialRecord, metric: DecidingMetric) -> LeaderboardRow:
    shown = (f"{metric.key}_best", "best_epoch", "latency_ms", "parameters", "macs", "wall_time_s", "epochs")
    metrics = {name: trial.metrics[name] for name in shown if name in trial.metrics}
    return LeaderboardRow.model_validate(
        {"trial": trial.number, "state": trial.state, **recorded_metrics(trial, metric), **metrics, **trial.point}
    )


def trained_trials(usable: Sequence[TrialRecord], base: Sequence[Point], ranked_by: str) -> tuple[TrainedTrial, ...]:
    """Trials with a result, by number; `base` are the points with the base recipe."""
    return tuple(
        TrainedTrial.model_validate(
            {
                "trial": trial.number,
                "state": trial.state,
                "topology": trial.point["topology"],
                "val_accuracy": trial.metrics["val_accuracy"],
                "value": trial.metrics[ranked_by],
                "has_base_recipe": trial.point in base and not {"scheduler", CUT} & trial.details.keys(),
            }
        )
        for trial in sorted(usable, key=lambda trial: trial.number)
    )


def with_trials(
    raw: Mapping[str, Any],
    spec: TrainStage,  # noqa: ARG001 - other stages need it
    trials: Callable[[], list[TrialRecord]],
) -> Mapping[str, Any]:
    """Add the trials to a result stored by version 0.1.0, which did not store them."""
    if "trials" in raw:
        return raw
    usable = [trial for trial in trials() if trial.is_usable]
    base = [trial.point for trial in usable if trial.number < len(raw["candidates"])]
    return {**raw, "trials": trained_trials(usable, base, ACCURACY.key)}


def recorded_metrics(trial: TrialRecord, metric: DecidingMetric) -> dict[str, float]:
    """The validation metrics of a trial. Those of version 0.1.0 have accuracy and loss alone."""
    keys = dict.fromkeys([*map(metric_key, RECORDED_METRICS), metric.key])
    return {key: trial.metrics[key] for key in keys if key in trial.metrics}


def result_line(result: TrainResult) -> str:
    value = float(result.best.model_dump()[result.ranked_by])
    shown = f"{100 * value:.2f} %" if result.metric.is_fraction else result.metric.text(value)
    beside = ""
    if result.metric.key in result.baseline:
        beside = f"; {against_baseline(value, result.baseline[result.metric.key], result.metric)}"
    of_front = f", {result.chosen}" if result.chosen else ""
    return f"validation {result.metric.words} {shown}{of_front}{beside}"
