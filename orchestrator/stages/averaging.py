"""Stage `averaging`: averages the best trial's checkpoints in several ways and selects one on validation data."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.reports.csv_text import csv_text
from orchestrator.spec.plugin_checks import plugin_corners, sampler_problems, search_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.stage_model import Count, StageModel, StageName, latest
from orchestrator.spec.yaml_source import KeyPath
from orchestrator.stages.context import StageContext
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.plugin_search import PluginSearchModel
from orchestrator.stages.retention import checkpoint_folders
from orchestrator.stages.train import TRAIN, TrainStage, configuration_of, sort_trials
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.recipes import PluginChoice, base_point, describe_plugin
from trainers.config import AverageTask


class AveragingStage(PluginSearchModel):
    """Averages the best trial's checkpoints in several ways and keeps the best average on validation data."""

    plugin_key: ClassVar[str] = "averaging.method"
    plugin_field: ClassVar[str] = "methods"
    stage: Literal["averaging"]
    name: StageName = Field(default="averaging", description="name of the stage in reports; unique in the study")
    num_trials: Count = Field(description="number of averages to evaluate")
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses the next average")
    methods: tuple[PluginChoice, ...] = Field(
        min_length=1, description="averaging methods; a setting that is a list or {low, high} is searched"
    )

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train",)

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from sampler_problems(self.sampler, self.known_dimensions, (*at, "sampler"))
        yield from search_problems("averaging", self.plugin_key, self.methods, (*at, "methods"))

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        train = latest(before, TrainStage)
        if train is not None:
            yield from _checkpoint_problems(self, train, at)
            yield from _average_problems(self, train, at)


def _average_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    """Yield methods that read an average of the weights that training does not maintain."""
    for index, method in enumerate(stage.methods):
        if method.name not in registry.available("averaging"):
            continue  # reported already
        field = getattr(registry.load("averaging", method.name), "reads", None)
        if field is not None and train.recipe.get(field) is None:
            yield Problem(
                (*at, "methods", index),
                f"{method.name} reads an average of the weights that training maintains, but stage {train.name!r} has "
                f"no recipe.{field}. Add it there, or remove the method.",
            )


class AveragingResult(StageResult):
    """The best average of checkpoints, and its gain over the trial itself."""

    averaging: PluginChoice
    averaged_from: int
    """Number of the trial in the train stage."""
    num_checkpoints: int
    val_accuracy: float
    val_loss: float
    metric: DecidingMetric = ACCURACY
    """The metric by which the averages were compared."""
    value: float | None = None
    """Its value; `None`, in results of version 0.1.0, means that it is the accuracy."""
    gain: float
    """How much better the value is than the trial's."""
    gain_val_loss: float
    """The trial's validation loss minus the average's."""


def run_averaging(context: StageContext, spec: AveragingStage) -> StageOutcome:
    """Search over averaging methods and their settings, applied to the checkpoints of the best trial."""
    from orchestrator.engines.suggester import OptunaSuggester
    from orchestrator.stages.searching import run_search

    train = context.required(TRAIN)
    source = context.trial_of(train, train.result.best.trial)
    configuration = configuration_of(context, train.spec, source)
    checkpoints = checkpoint_folders(context, source)
    metric, objectives = context.metric, (Objective.of(context.metric),)
    search = Search(
        num_trials=spec.num_trials,
        objectives=objectives,
        suggester=OptunaSuggester(
            spec.dimensions,
            objectives=objectives,
            sampler=spec.sampler,
            seed=context.seed,
            first=[base_point(spec.dimensions)],
        ),
        make_task=lambda trial: AverageTask(
            configuration=configuration, checkpoints=checkpoints, averaging=spec.decode(trial.point)
        ),
    )
    averages = sort_trials(run_search(context, search), objectives)
    best = averages[0]
    method = spec.decode(best.point)
    value, before = best.metrics[metric.key], source.metrics[metric.key]
    gain = metric.score(value) - metric.score(before)
    return StageOutcome(
        result=AveragingResult(
            averaging=method,
            averaged_from=source.number,
            num_checkpoints=len(checkpoints),
            val_accuracy=best.metrics["val_accuracy"],
            val_loss=best.metrics["val_loss"],
            metric=metric,
            value=value,
            gain=gain,
            gain_val_loss=source.metrics["val_loss"] - best.metrics["val_loss"],
        ),
        summary=f"{describe_plugin(method)} over {len(checkpoints)} checkpoints of trial {source.number}: "
        f"{metric.text(value)} ({metric.difference(value, before)})",
        metrics={
            "val_accuracy": best.metrics["val_accuracy"],
            "val_loss": best.metrics["val_loss"],
            metric.key: value,
            "gain": gain,
        },
        texts={"averaging.csv": _table(averages, spec, metric)},
    )


def _checkpoint_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    kept = min(train.keep_checkpoints, train.epochs)
    for index, method in enumerate(stage.methods):
        if method.name not in registry.available("averaging"):
            continue  # reported by `own_problems`
        for corner in plugin_corners(stage.plugin_key, method):
            needed = registry.create("averaging", corner.name, corner.settings).num_needed
            if needed > kept:
                settings = ", ".join(f"{key}={value}" for key, value in corner.settings.items())
                yield Problem(
                    (*at, "methods", index),
                    f"must need at most the {kept} checkpoints that stage {train.name!r} keeps (keep_checkpoints: "
                    f"{train.keep_checkpoints}, epochs: {train.epochs}), but {corner.name}"
                    f"{f' with {settings}' if settings else ''} needs {needed}. Lower its settings or raise "
                    "keep_checkpoints.",
                )


def _table(trials: Sequence[TrialRecord], spec: AveragingStage, metric: DecidingMetric) -> str:
    keys = list(dict.fromkeys(["val_accuracy", "val_loss", metric.key]))
    rows = (
        [trial.number, describe_plugin(spec.decode(trial.point)), *(trial.metrics[key] for key in keys)]
        for trial in trials
    )
    return csv_text(["trial", "method", *keys], rows)


def _gain(result: AveragingResult) -> str:
    return f"{100 * result.gain:+.2f} points" if result.metric.is_fraction else f"{result.gain:+.4f}"


AVERAGING = StageKind(
    model=AveragingStage,
    result=AveragingResult,
    run=run_averaging,
    line=lambda result: f"{describe_plugin(result.averaging)}: {_gain(result)}",
)
