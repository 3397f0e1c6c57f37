"""Stage `stopping`: applies stopping criteria to recorded learning curves, without training."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.reports.csv_text import csv_text
from orchestrator.spec.plugin_checks import plugin_corners, sampler_problems, search_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.stage_model import Count, StageModel, StageName, latest
from orchestrator.spec.stopping_checks import CRITERION_KEY, idle_criteria
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import FinishedStage, StageKind, StageOutcome, StageResult
from orchestrator.stages.plugin_search import PluginSearchModel
from orchestrator.stages.trade_off import pareto_front
from orchestrator.stages.train import TRAIN
from orchestrator.stages.train_result import TrainResult
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.protocols import CurvePoint, Signal, needed_signals
from search_spaces.recipes import PluginChoice, base_point, describe_plugin
from trainers.config import ReplayTask
from trainers.yaml_source import KeyPath

OBJECTIVES = (Objective("epochs_saved", "maximize"), Objective("accuracy_lost", "minimize"))


class StoppingStage(PluginSearchModel):
    """Applies early-stopping criteria to the recorded learning curves."""

    plugin_key: ClassVar[str] = CRITERION_KEY
    plugin_field: ClassVar[str] = "criteria"
    stage: Literal["stopping"]
    name: StageName = Field(default="stopping", description="name of the stage in reports; unique in the study")
    num_trials: Count = Field(description="number of criteria to replay")
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses the next criterion")
    criteria: tuple[PluginChoice, ...] = Field(
        min_length=1, description="early-stopping criteria; a setting that is a list or {low, high} is searched"
    )
    max_accuracy_lost: Annotated[float, Field(ge=0, lt=1, strict=True)] = Field(
        default=0.005,
        description="how much of the study's metric stopping early may cost on average; for an accuracy, a fraction",
    )

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train",)

    @property
    def signals_read(self) -> frozenset[Signal]:
        found: frozenset[Signal] = frozenset()
        for choice in self.criteria:
            for corner in plugin_corners(self.plugin_key, choice):
                found |= needed_signals(registry.create("stopping", corner.name, corner.settings))
        return found

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from sampler_problems(self.sampler, self.known_dimensions, (*at, "sampler"))
        yield from search_problems("stopping", self.plugin_key, self.criteria, (*at, "criteria"))

    def remarks(self, before: Sequence[StageModel]) -> Iterator[str]:
        train = latest(before, TrainStage)
        if train is not None:
            yield from idle_criteria(self.name, self.criteria, epochs=train.epochs)


class ReplayedCriterion(StageResult):
    """A Pareto-optimal criterion: no other saves more epochs without losing more accuracy."""

    trial: int
    criterion: str
    epochs_saved: float
    accuracy_lost: float
    curves_stopped: float


class StoppingResult(StageResult):
    """The chosen criterion, with its savings and losses on the recorded curves as fractions."""

    criterion: PluginChoice
    epochs_saved: float
    metric: DecidingMetric = ACCURACY
    """The metric of `accuracy_lost`, which is its mean loss by stopping early, whichever metric it is."""
    accuracy_lost: float
    within_limit: bool
    """Whether `accuracy_lost` is at most the file's `max_accuracy_lost`."""
    num_curves: int
    front: tuple[ReplayedCriterion, ...]
    best_of_each: tuple[ReplayedCriterion, ...] = ()
    """The setting of each criterion that would be chosen if it were the only criterion; empty in results of version
    0.1.0."""


def run_stopping(context: StageContext, spec: StoppingStage) -> StageOutcome:
    """Search for the criterion that saves the most epochs and loses at most `max_accuracy_lost` of the metric."""
    from orchestrator.engines.suggester import OptunaSuggester
    from orchestrator.stages.searching import run_search

    train = context.required(TRAIN)
    curves_by_trial = whole_curves(context, train)
    if not curves_by_trial:
        raise StageFailedError(
            "the stopping stage needs curves of trials that trained for all their epochs, but every trial was stopped "
            "early. Set `stopping: null` in the train stage."
        )
    curves = tuple(curves_by_trial.values())
    for message in idle_criteria(spec.name, spec.criteria, epochs=max(map(len, curves))):
        context.progress.note(message)
    search = Search(
        num_trials=spec.num_trials,
        objectives=OBJECTIVES,
        suggester=OptunaSuggester(
            spec.dimensions,
            objectives=OBJECTIVES,
            sampler=spec.sampler,
            seed=context.seed,
            first=[base_point(spec.dimensions)],
        ),
        make_task=lambda trial: ReplayTask(criterion=spec.decode(trial.point), curves=curves),
    )
    replays = run_search(context, search)
    _note_failures(context)
    chosen = choose_criterion(replays, max_accuracy_lost=spec.max_accuracy_lost)
    criterion = spec.decode(chosen.point)
    saved, lost = chosen.metrics["epochs_saved"], chosen.metrics["accuracy_lost"]
    return StageOutcome(
        result=StoppingResult(
            criterion=criterion,
            epochs_saved=saved,
            metric=context.metric,
            accuracy_lost=lost,
            within_limit=lost <= spec.max_accuracy_lost,
            num_curves=len(curves),
            front=tuple(_replayed(trial, spec) for trial in pareto_front(replays, OBJECTIVES)),
            best_of_each=tuple(_replayed(trial, spec) for trial in best_of_each(replays, spec)),
        ),
        summary=f"{describe_plugin(criterion)} saves {100 * saved:.0f} % of the epochs "
        f"for {context.metric.amount(lost)}",
        metrics={"epochs_saved": saved, "accuracy_lost": lost, "num_curves": len(curves)},
        texts={"stopping.csv": _table(replays, spec)},
        plots=_plots(context, replays, chosen),
    )


def whole_curves(
    context: StageContext, train: FinishedStage[TrainStage, TrainResult]
) -> dict[int, tuple[CurvePoint, ...]]:
    """The curves of the trials that trained for all their epochs, by the trial's number, in their order."""
    whole = {trial.trial for trial in train.result.trials if trial.state == "complete"}
    return {
        trial.number: tuple(report.point_by(context.metric) for report in context.store.reports(trial.id))
        for trial in context.store.trials(train.record.id)
        if trial.number in whole
    }


def choose_criterion(trials: list[TrialRecord], *, max_accuracy_lost: float) -> TrialRecord:
    """The trial that saves the most epochs within the limit; if none is within it, the one that loses the least."""
    allowed = [trial for trial in trials if trial.metrics["accuracy_lost"] <= max_accuracy_lost]
    if allowed:
        return min(
            allowed,
            key=lambda trial: (-trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"], trial.number),
        )
    return min(trials, key=lambda trial: (trial.metrics["accuracy_lost"], -trial.metrics["epochs_saved"], trial.number))


def best_of_each(trials: Sequence[TrialRecord], spec: StoppingStage) -> list[TrialRecord]:
    """The chosen trial of each criterion, by name; the most epochs saved first."""
    by_name: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        by_name.setdefault(spec.decode(trial.point).name, []).append(trial)
    chosen = [choose_criterion(some, max_accuracy_lost=spec.max_accuracy_lost) for some in by_name.values()]
    return sorted(chosen, key=lambda trial: (-trial.metrics["epochs_saved"], trial.number))


def _note_failures(context: StageContext) -> None:
    """Say which replays failed, once per reason: usually, the curves lack a signal."""
    reasons = [trial.reason for trial in context.store.trials(context.stage.id) if trial.state == "failed"]
    for reason in dict.fromkeys(reasons):
        count = reasons.count(reason)
        context.progress.note(f"{count} of the criteria could not be replayed: {reason}")


def _replayed(trial: TrialRecord, spec: StoppingStage) -> ReplayedCriterion:
    return ReplayedCriterion(trial=trial.number, criterion=describe_plugin(spec.decode(trial.point)), **trial.metrics)


def _table(trials: Sequence[TrialRecord], spec: StoppingStage) -> str:
    rows = (
        [
            trial.number,
            describe_plugin(spec.decode(trial.point)),
            trial.metrics["epochs_saved"],
            trial.metrics["accuracy_lost"],
            trial.metrics["curves_stopped"],
        ]
        for trial in trials
    )
    return csv_text(["trial", "criterion", "epochs_saved", "accuracy_lost", "curves_stopped"], rows)


def _plots(context: StageContext, trials: list[TrialRecord], chosen: TrialRecord) -> tuple[Path, ...]:
    from orchestrator.reports.plots import stopping_front

    path = context.folder / "stopping-front.png"
    points = [(trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"]) for trial in trials]
    stopping_front(points, trials.index(chosen), path, metric=context.metric)
    return (path,)


STOPPING = StageKind(
    model=StoppingStage,
    result=StoppingResult,
    run=run_stopping,
    line=lambda result: f"{describe_plugin(result.criterion)}: {100 * result.epochs_saved:.0f} % of epochs saved",
)
