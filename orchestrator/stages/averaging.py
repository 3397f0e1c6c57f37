"""Stage `averaging`: averages the best trial's checkpoints in several ways and selects one on validation data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.reports.csv_text import csv_text
from orchestrator.spec import stop_epochs
from orchestrator.spec.averaging_checks import (
    METHOD_KEY,
    averaging_corners,
    checkpoint_needs,
    maintained_problem,
    mixes_trials,
    reads_of,
    too_long_averages,
)
from orchestrator.spec.plugin_checks import sampler_problems, search_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.stage_model import Count, StageModel, StageName, latest
from orchestrator.stages.averaging_sources import Sources, sources_of
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.plugin_search import PluginSearchModel
from orchestrator.stages.retention import num_kept
from orchestrator.stages.train import TRAIN, configuration_of
from orchestrator.stages.train_result import ranking, sort_trials
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.dimensions import Dimension, Scalar
from search_spaces.recipes import PluginChoice, base_point, describe_plugin
from trainers.config import AverageTask
from trainers.yaml_source import KeyPath

_ROUNDING = 1e-9


class AveragingStage(PluginSearchModel):
    """Averages the best trial's checkpoints in several ways and keeps the best average on validation data."""

    plugin_key: ClassVar[str] = METHOD_KEY
    plugin_field: ClassVar[str] = "methods"
    stage: Literal["averaging"]
    name: StageName = Field(default="averaging", description="name of the stage in reports; unique in the study")
    num_trials: Count = Field(description="number of averages to evaluate")
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses the next average")
    methods: tuple[PluginChoice, ...] = Field(
        min_length=1, description="averaging methods; a setting that is a list or {low, high} is searched"
    )
    stop_at: int | str | tuple[int | str, ...] | dict[str, Any] | None = Field(
        default=None,
        description="epoch at which the training could have ended; a list or {low, high} is searched; `stopping` is "
        "the epoch at which the criterion of the preceding `stopping` stage ends the trial; null is the last epoch",
    )
    max_accuracy_lost: Annotated[float, Field(ge=0, lt=1, strict=True)] = Field(
        default=0.0,
        description="how much of the study's metric ending the training at `stop_at` may cost; among the averages that "
        "lose no more than this against the best one, the one that saves the most epochs is chosen",
    )

    @field_validator("stop_at", mode="before")
    @classmethod
    def _is_an_epoch(cls, raw: Any) -> Any:
        return stop_epochs.check_stop_at(raw)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train", "stopping") if stop_epochs.BY_CRITERION in self._stop_values else ("train",)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        stop = stop_epochs.stop_dimension(self.stop_at)
        return (*super().dimensions, *(() if stop is None else (stop,)))

    def decode_stop(self, point: Mapping[str, Scalar], sources: Sources) -> int | None:
        """The epoch at which the training of a point ends; `None` for the trial's last one."""
        value = point.get(stop_epochs.KEY, self.stop_at)
        epoch = sources.stopped_at if value == stop_epochs.BY_CRITERION else value
        return epoch if isinstance(epoch, int) and epoch < sources.last_epoch else None

    @property
    def _stop_values(self) -> Sequence[Scalar]:
        return stop_epochs.values_of(self.stop_at)

    def checkpoints_read(self, epochs: int) -> int:
        values = self._stop_values
        if not values:
            return 0  # longer averages are left out, as `remarks` says
        reads_all = any(reads_of(corner) == "best" for method in self.methods for corner in averaging_corners(method))
        if reads_all or stop_epochs.BY_CRITERION in values:
            return epochs
        longest = max((most for _, most, _ in checkpoint_needs(self.methods)), default=1)
        return min(epochs, epochs - min(value for value in values if isinstance(value, int)) + longest)

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from sampler_problems(self.sampler, self.known_dimensions, (*at, "sampler"))
        yield from search_problems("averaging", self.plugin_key, self.methods, (*at, "methods"))
        if self.max_accuracy_lost and stop_epochs.stop_dimension(self.stop_at) is None:
            yield Problem(
                (*at, "max_accuracy_lost"),
                "must be left out unless `stop_at` has several epochs to choose from. Add them, or remove it.",
            )

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        train = latest(before, TrainStage)
        if train is not None:
            yield from _checkpoint_problems(self, train, at)
            yield from _average_problems(self, train, at)

    def remarks(self, before: Sequence[StageModel]) -> Iterator[str]:
        train = latest(before, TrainStage)
        if train is None:
            return
        yield from too_long_averages(self.name, self.methods, num_checkpoints=_kept(self, train))
        mixing = [method.name for method in self.methods if mixes_trials(method)]
        if mixing and train.weights is None:
            yield (
                f"{' and '.join(mixing)} of stage {self.name!r} averages trials that start from different random "
                "weights, which hardly ever helps. Give the train stage `weights`"
            )


def _average_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    """Yield methods that read an average of the weights that training does not maintain."""
    for index, method in enumerate(stage.methods):
        problem = maintained_problem(method, train.recipe, f"stage {train.name!r}")
        if problem is not None:
            yield Problem((*at, "methods", index), problem)


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
    stop_at: int | None = None
    """The epoch at which the training could have ended; `None` for the trial's last one."""
    epochs_saved: float = 0.0
    """Fraction of the trial's epochs after `stop_at`."""
    forward_passes: int | None = None
    """Passes of the validation part in the whole stage; `None` in results of version 0.1.0."""


def run_averaging(context: StageContext, spec: AveragingStage) -> StageOutcome:
    """Search over averaging methods, their settings and the epoch to stop at, for the best trial."""
    from orchestrator.engines.suggester import OptunaSuggester
    from orchestrator.stages.search_figures import draw_averages
    from orchestrator.stages.searching import run_search

    train = context.required(TRAIN)
    source = context.trial_of(train, train.result.best.trial)
    configuration = configuration_of(context, train.spec, source)
    by_criterion = stop_epochs.BY_CRITERION in stop_epochs.all_values(spec.stop_at)
    sources = sources_of(context, train, source, replay_stopping=by_criterion)
    metric, objectives = context.metric, averaging_objectives(context.metric, spec)
    _note_what_is_left_out(context, spec, sources)

    def problem(point: Mapping[str, Scalar]) -> str | None:
        return sources.problem(spec.decode(point), metric, stop_at=spec.decode_stop(point, sources))

    base = base_point(spec.dimensions)
    search = Search(
        num_trials=spec.num_trials,
        objectives=objectives,
        suggester=OptunaSuggester(
            spec.dimensions,
            objectives=objectives,
            sampler=spec.sampler,
            seed=context.seed,
            first=[] if problem(base) else [base],
            problem=problem,
        ),
        make_task=lambda trial: AverageTask(
            configuration=configuration,
            checkpoints=sources.checkpoints,
            averaging=spec.decode(trial.point),
            stop_at=spec.decode_stop(trial.point, sources),
            trials=sources.trials if reads_of(spec.decode(trial.point)) == "trials" else (),
            precision=context.spec.resources.precision,
        ),
    )
    averages = sort_trials(run_search(context, search), objectives)
    best = choose_average(averages, metric, max_accuracy_lost=spec.max_accuracy_lost)
    method, stop_at = spec.decode(best.point), spec.decode_stop(best.point, sources)
    saved = best.metrics.get("epochs_saved", 0.0)
    value, before = best.metrics[metric.key], source.metrics[ranking(context, train.spec).metric]
    gain = metric.score(value) - metric.score(before)
    num_passes = round(sum(trial.metrics.get("forward_passes", 1.0) for trial in averages))
    return StageOutcome(
        result=AveragingResult(
            averaging=method,
            averaged_from=source.number,
            num_checkpoints=len(sources.checkpoints),
            val_accuracy=best.metrics["val_accuracy"],
            val_loss=best.metrics["val_loss"],
            metric=metric,
            value=value,
            gain=gain,
            gain_val_loss=source.metrics["val_loss"] - best.metrics["val_loss"],
            stop_at=stop_at,
            epochs_saved=saved,
            forward_passes=num_passes,
        ),
        summary=f"{describe_plugin(method)}, of the last {len(sources.checkpoints)} checkpoints of trial "
        f"{source.number}: {metric.text(value)} ({metric.difference(value, before)})"
        + ("" if stop_at is None else f", {_saving(stop_at, saved)}"),
        metrics={
            "val_accuracy": best.metrics["val_accuracy"],
            "val_loss": best.metrics["val_loss"],
            metric.key: value,
            "gain": gain,
            "epochs_saved": saved,
            "forward_passes": num_passes,
        },
        texts={"averaging.csv": _table(averages, spec, metric, sources)},
        plots=draw_averages(
            context,
            [
                (
                    describe_average(spec.decode(one.point), spec.decode_stop(one.point, sources)),
                    metric.score(one.metrics[metric.key]) - metric.score(before),
                )
                for one in averages
            ],
        ),
    )


def describe_average(method: PluginChoice, stop_at: int | None) -> str:
    """A readable form of an average: `lawa(window=5) at epoch 12`."""
    return describe_plugin(method) + ("" if stop_at is None else f" at epoch {stop_at}")


def choose_average(ordered: Sequence[TrialRecord], metric: DecidingMetric, *, max_accuracy_lost: float) -> TrialRecord:
    """The average that saves the most epochs among those that lose at most `max_accuracy_lost` against the best one.

    Args:
        ordered: The averages, the best first.
        metric: The metric that orders them.
        max_accuracy_lost: Largest loss of its value.
    """
    least = metric.score(ordered[0].metrics[metric.key]) - max_accuracy_lost - _ROUNDING
    allowed = [trial for trial in ordered if metric.score(trial.metrics[metric.key]) >= least]
    return max(allowed, key=lambda trial: trial.metrics.get("epochs_saved", 0.0))  # of equals, the first


def averaging_objectives(metric: DecidingMetric, spec: AveragingStage) -> tuple[Objective, ...]:
    """The metric, and the epochs saved if the search chooses where to stop."""
    searched = any(dimension.name == stop_epochs.KEY for dimension in spec.dimensions)
    return (Objective.of(metric), *((Objective("epochs_saved", "maximize"),) if searched else ()))


def _saving(stop_at: int, saved: float) -> str:
    return f"{100 * saved:.0f} % of the epochs saved by ending after epoch {stop_at}"


def _note_what_is_left_out(context: StageContext, spec: AveragingStage, sources: Sources) -> None:
    """Say which methods cannot be computed.

    Raises:
        StageFailedError: None can.
    """
    num_checkpoints = sources.num_up_to(sources.last_epoch)
    for message in too_long_averages(spec.name, spec.methods, num_checkpoints=num_checkpoints):
        context.progress.note(message)
    corners = [corner for method in spec.methods for corner in averaging_corners(method)]
    mixing = [corner for corner in corners if reads_of(corner) == "trials"]
    count = len(sources.trials)
    unfit = [one for one in mixing if registry.create("averaging", one.name, one.settings).num_needed > count]
    if unfit:
        trials = "1 trial" if count == 1 else f"{count} trials"
        too_few = ", ".join(describe_plugin(one) for one in unfit)
        context.progress.note(
            f"stage {spec.name!r} has {trials} of the best topology to average, too few for {too_few}"
        )
    ends = {
        value: spec.decode_stop({stop_epochs.KEY: value}, sources) for value in stop_epochs.all_values(spec.stop_at)
    }
    problems = {
        value: [sources.problem(corner, context.metric, stop_at=end) for corner in corners]
        for value, end in ends.items()
    }
    missing = [str(value) for value, found in problems.items() if None not in found]
    if len(missing) == len(ends):
        raise StageFailedError(
            f"stage {spec.name!r} must have an average that can be computed from the checkpoints on disk, but "
            f"{next(iter(problems.values()))[0]}. Add `last` to its methods, and the last epoch to `stop_at` if it is "
            "given."
        )
    if missing:
        context.progress.note(
            f"stage {spec.name!r} leaves out the epochs {', '.join(missing)} of `stop_at`: the training kept no "
            "checkpoints for them. Run the study under another name to average them"
        )
    if stop_epochs.BY_CRITERION in ends and ends[stop_epochs.BY_CRITERION] is None:
        context.progress.note(
            f"stage {spec.name!r}: the criterion of the stopping stage does not end this trial, so that `stopping` "
            "means its last epoch"
        )


def _checkpoint_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    stops = [value for value in stop_epochs.values_of(stage.stop_at) if isinstance(value, int)]
    if stops and max(stops) > train.epochs:
        yield Problem(
            (*at, "stop_at"),
            f"must be at most the {train.epochs} epochs of stage {train.name!r}, but got {max(stops)}. Lower it.",
        )
        return
    kept = _kept(stage, train)
    least = min((least for least, _, _ in checkpoint_needs(stage.methods)), default=0)
    if least > kept:
        yield Problem(
            (*at, "methods"),
            f"must include an average of at most the {kept} checkpoints that stage {train.name!r} keeps "
            f"(keep_checkpoints: {train.keep_checkpoints}, epochs: {train.epochs}), but all need {least} or more. Add "
            "`last`, or raise keep_checkpoints and epochs.",
        )
    elif stops and least > max(stops):
        yield Problem(
            (*at, "methods"),
            f"must include an average of at most the {max(stops)} checkpoints up to the latest epoch of `stop_at`, but "
            f"all need {least} or more. Add `last`, or raise `stop_at`.",
        )
    if stops and len(stops) == len(stop_epochs.values_of(stage.stop_at)) and max(stops) < train.epochs:
        for index, method in enumerate(stage.methods):
            if mixes_trials(method):
                yield Problem(
                    (*at, "methods", index),
                    f"{method.name} mixes trials as they ended, but `stop_at` never is their last epoch "
                    f"({train.epochs}). Add {train.epochs} to `stop_at`, or remove the method.",
                )


def _kept(stage: AveragingStage, train: TrainStage) -> int:
    """Number of newest checkpoints that a training keeps for the stage."""
    return min(num_kept([stage], keep_checkpoints=train.keep_checkpoints, epochs=train.epochs), train.epochs)


def _table(trials: Sequence[TrialRecord], spec: AveragingStage, metric: DecidingMetric, sources: Sources) -> str:
    keys = list(dict.fromkeys(["val_accuracy", "val_loss", metric.key]))
    rows = (
        [
            trial.number,
            describe_plugin(spec.decode(trial.point)),
            *(trial.metrics[key] for key in keys),
            spec.decode_stop(trial.point, sources) or sources.last_epoch,
            trial.metrics.get("epochs_saved", 0.0),
            round(trial.metrics.get("forward_passes", 1.0)),
        ]
        for trial in trials
    )
    return csv_text(["trial", "method", *keys, "stop_at", "epochs_saved", "forward_passes"], rows)


def _gain(result: AveragingResult) -> str:
    return f"{100 * result.gain:+.2f} points" if result.metric.is_fraction else f"{result.gain:+.4f}"


def _line(result: AveragingResult) -> str:
    ending = "" if result.stop_at is None else f", {_saving(result.stop_at, result.epochs_saved)}"
    return f"{describe_plugin(result.averaging)}: {_gain(result)}{ending}"


AVERAGING = StageKind(
    model=AveragingStage,
    result=AveragingResult,
    run=run_averaging,
    line=_line,
)
