"""Stage `averaging`: averages the best trial's checkpoints in several ways and selects one on validation data."""

from collections.abc import Iterator, Mapping, Sequence
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
from orchestrator.stages.train import TRAIN, TrainStage, configuration_of, ranking, sort_trials
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.dimensions import Scalar
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
            yield from _checkpoint_problems(self, train, (*at, "methods"))
            yield from _average_problems(self, train, at)

    def remarks(self, before: Sequence[StageModel]) -> Iterator[str]:
        train = latest(before, TrainStage)
        if train is not None:
            yield from too_long_averages(self, num_checkpoints=min(train.keep_checkpoints, train.epochs))


def _average_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    """Yield methods that read an average of the weights that training does not maintain."""
    for index, method in enumerate(stage.methods):
        if method.name not in registry.available("averaging"):
            continue  # reported already
        field = getattr(registry.load("averaging", method.name), "reads", None)
        if field in ("ema", "swa") and train.recipe.get(field) is None:
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
    from orchestrator.stages.search_figures import draw_averages
    from orchestrator.stages.searching import run_search

    train = context.required(TRAIN)
    source = context.trial_of(train, train.result.best.trial)
    configuration = configuration_of(context, train.spec, source)
    checkpoints = checkpoint_folders(context, source)
    metric, objectives = context.metric, (Objective.of(context.metric),)
    for message in too_long_averages(spec, num_checkpoints=len(checkpoints)):
        context.progress.note(message)
    base = base_point(spec.dimensions)
    search = Search(
        num_trials=spec.num_trials,
        objectives=objectives,
        suggester=OptunaSuggester(
            spec.dimensions,
            objectives=objectives,
            sampler=spec.sampler,
            seed=context.seed,
            first=[] if _problem(spec, base, len(checkpoints)) else [base],
            problem=lambda point: _problem(spec, point, len(checkpoints)),
        ),
        make_task=lambda trial: AverageTask(
            configuration=configuration, checkpoints=checkpoints, averaging=spec.decode(trial.point)
        ),
    )
    averages = sort_trials(run_search(context, search), objectives)
    best = averages[0]
    method = spec.decode(best.point)
    value, before = best.metrics[metric.key], source.metrics[ranking(context, train.spec).metric]
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
        plots=draw_averages(
            context,
            [
                (describe_plugin(spec.decode(one.point)), metric.score(one.metrics[metric.key]) - metric.score(before))
                for one in averages
            ],
        ),
    )


def too_long_averages(spec: AveragingStage, *, num_checkpoints: int) -> list[str]:
    """Name the methods whose settings need more than `num_checkpoints` checkpoints, and which are left out."""
    unfit = []
    for least, most, longest in _needs(spec):
        if least > num_checkpoints:
            unfit.append(f"{longest.name} (needs at least {least})")
        elif most > num_checkpoints:
            unfit.append(f"settings of {longest.name} up to {describe_plugin(longest)} (needs {most})")
    if not unfit:
        return []
    count = "1 checkpoint" if num_checkpoints == 1 else f"{num_checkpoints} checkpoints"
    return [f"stage {spec.name!r} has {count} to average, so it leaves out {' and '.join(unfit)}"]


def _needs(spec: AveragingStage) -> Iterator[tuple[int, int, PluginChoice]]:
    """The smallest and the largest number of checkpoints that each installed method needs, and its longest average."""
    for method in spec.methods:
        if method.name not in registry.available("averaging"):
            continue  # reported by `own_problems`
        corners = plugin_corners(spec.plugin_key, method)
        needed = [registry.create("averaging", corner.name, corner.settings).num_needed for corner in corners]
        most = max(needed)
        yield min(needed), most, corners[needed.index(most)]


def _problem(spec: AveragingStage, point: Mapping[str, Scalar], num_checkpoints: int) -> str | None:
    """Why the average at a point cannot be computed; `None` if it can."""
    method = spec.decode(point)
    needed = registry.create("averaging", method.name, method.settings).num_needed
    return None if needed <= num_checkpoints else f"{describe_plugin(method)} needs {needed} checkpoints"


def _checkpoint_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    kept = min(train.keep_checkpoints, train.epochs)
    least = min((least for least, _, _ in _needs(stage)), default=0)
    if least > kept:
        yield Problem(
            at,
            f"must include an average of at most the {kept} checkpoints that stage {train.name!r} keeps "
            f"(keep_checkpoints: {train.keep_checkpoints}, epochs: {train.epochs}), but all need {least} or more. Add "
            "`last`, or raise keep_checkpoints and epochs.",
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
