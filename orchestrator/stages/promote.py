"""Stage `promote`: tests the best model once on the untouched test part and registers it as champion."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from orchestrator.reports.csv_text import csv_text
from orchestrator.spec.averaging_checks import needs_validation, reads_of
from orchestrator.spec.cost import CostName
from orchestrator.spec.problems import Problem
from orchestrator.spec.stage_model import Count, StageModel, StageName, latest
from orchestrator.stages.averaging import AVERAGING, AveragingResult
from orchestrator.stages.averaging_sources import sources_of
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.finalists import (
    Finalist,
    Trained,
    best_retraining,
    refit,
    retrain_finalists,
    retrained_configuration,
)
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.retention import TRAIN_AGAIN
from orchestrator.stages.stopping import STOPPING, StoppingResult
from orchestrator.stages.train import TRAIN, configuration_of
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import StageRecord, TrialRecord
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.protocols import StateDict
from search_spaces.recipes import PluginChoice, describe_plugin
from trainers.config import Configuration
from trainers.results.model_report import ModelReport, describe_result
from trainers.yaml_source import KeyPath


class PromoteStage(StageModel):
    """Tests the best model once on the test part and registers it as champion."""

    reads_test_part: ClassVar[bool] = True
    stage: Literal["promote"]
    name: StageName = Field(default="promote", description="name of the stage in reports; unique in the study")
    finalists: Count = Field(
        default=1, description="number of best trials that are trained again, with `seeds` other seeds each"
    )
    seeds: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=0,
        description="number of other seeds; the finalist with the best mean becomes the champion; 0 takes the best "
        "trial as it is",
    )
    refit: bool = Field(
        default=False,
        description="train the champion once more on the training and validation part together; no validation figure "
        "is left then",
    )

    limit: dict[CostName, Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="largest cost of the champion, in a study that weighs one: `{latency: 5}` in ms, `{macs: ...}` or "
        "`{parameters: ...}`; by default, the knee of the front is chosen",
    )

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train",)

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        if self.finalists > 1 and self.seeds == 0:
            yield Problem(
                (*at, "finalists"),
                f"must be 1 unless `seeds` tells with how many other seeds finalists are trained again, but is "
                f"{self.finalists} with `seeds: 0`. Set `seeds`, for instance to 3.",
            )

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        train = latest(before, TrainStage)
        if train is not None and self.finalists > train.num_trials:
            yield Problem(
                (*at, "finalists"),
                f"must be at most the {train.num_trials} trials of stage {train.name!r}, but is {self.finalists}. "
                "Lower it.",
            )


class PromoteResult(StageResult):
    """The champion."""

    test_accuracy: float
    test_loss: float
    val_accuracy: float | None = None
    """`None` if the champion was trained on the validation part (`refit`)."""
    val_loss: float | None = None
    parameters: float
    macs: float
    trial: int
    """Number of the trial in the train stage."""
    retrained: int | None = None
    """Number of the training in this stage that made the champion; `None` if it is the trial itself."""
    finalists: tuple[Finalist, ...] = ()
    """The trials that were trained again with other seeds, best mean first."""
    refit: bool = False
    """Whether the champion was trained on the training and validation part."""
    folder: Path
    """Folder of the model, relative to the study's folder."""
    configuration: Configuration
    averaged: AveragingResult | None
    recommended_stopping: StoppingResult | None
    chosen: str | None = None
    """Why the trial was chosen from the Pareto front; `None` in a study with one objective, whose best trial it is."""
    test: ModelReport | None = None
    """What the champion does on the test part; `None` if version 0.1.0 tested it."""


class _Chosen(NamedTuple):
    """The training whose weights become the champion's."""

    trial: int
    """Number of the trial in the train stage."""
    trained: TrialRecord
    """That trial, or a training of this stage."""
    stage: StageRecord
    """Stage of `trained`."""
    configuration: Configuration
    finalists: tuple[Finalist, ...] = ()


class _Built(NamedTuple):
    """The champion before its test."""

    chosen: _Chosen
    weights: StateDict
    configuration: Configuration
    temperature: float | None
    """`None` if it is to be fitted."""


def run_promote(context: StageContext, spec: PromoteStage) -> StageOutcome:
    """Build the champion from the best trial's checkpoints, test it, and save it with its full configuration."""
    from orchestrator.reports.model_files import draw_report, report_metrics, report_texts
    from orchestrator.reports.summary import configuration_yaml
    from orchestrator.stages.trial_pages import mark_champion
    from trainers.champion import finish_model
    from trainers.data.images import load_images

    train, averaged, stopping = context.required(TRAIN), context.earlier(AVERAGING), context.earlier(STOPPING)
    if not spec.seeds and not spec.refit:
        context.progress.stage_began(context.stage, total=1, done=0)
    chosen = _choose(context, spec, train)
    averaging = PluginChoice(name=train.spec.rank_by) if averaged is None else averaged.result.averaging
    stop_at = None if averaged is None else averaged.result.stop_at
    built = _build(context, train, chosen, averaging, stop_at)
    if spec.refit:
        built = _refit(context, train, built)
    folder, data = context.folder / "champion", load_images(built.configuration.data)
    metrics, report, test = finish_model(
        folder, built.weights, built.configuration, data, temperature=built.temperature
    )
    chosen, configuration = built.chosen, built.configuration
    result = PromoteResult(
        **metrics,
        trial=chosen.trial,
        retrained=chosen.trained.number if chosen.stage.id == context.stage.id else None,
        finalists=chosen.finalists,
        refit=configuration.train_on != "train",
        folder=folder.relative_to(context.folder.parent),
        configuration=configuration,
        averaged=averaged.result if averaged is not None else None,
        chosen=train.result.chosen,
        recommended_stopping=stopping.result if stopping is not None else None,
        test=report,
    )
    origin = f"trial {chosen.trial}" + (", trained again" if result.retrained is not None else "")
    described = (
        f"`{configuration.topology}`, {describe_result(report)} on the test part; "
        f"{origin}, averaging {configuration.averaging.name}."
        + (f" Of the trials, it is {result.chosen}." if result.chosen else "")
    )
    advice = result.model_dump(mode="json")["recommended_stopping"]
    texts = {"champion.yaml": configuration_yaml(configuration, advice), **report_texts(report)}
    if chosen.finalists:
        texts["finalists.csv"] = _finalist_table(chosen.finalists)
    return StageOutcome(
        result=result,
        summary=f"champion: {describe_result(report)} on the test part ({configuration.topology})"
        + (f"; it is {result.chosen}" if result.chosen else ""),
        metrics={**metrics, **report_metrics(report)},
        texts=texts,
        plots=draw_report(report, test, context.folder),
        events=tuple(
            context.run_tree.champion_promoted(
                context.stage,
                folder,
                tags={
                    "topology": configuration.topology,
                    "test_accuracy": f"{metrics['test_accuracy']:.4f}",
                    "baseline_accuracy": f"{report.baseline.accuracy:.4f}",
                    "averaged_from": context.run_tree.trial_key(chosen.stage, chosen.trained.number),
                    **({"initialised_from": train.result.weights.lineage} if train.result.weights else {}),
                    **({"taught_by": train.result.teacher.lineage} if train.result.teacher else {}),
                },
                text=described,
            )
            + mark_champion(context, train.record, chosen.trial, text=f"The champion: {described}")
        ),
    )


def _choose(context: StageContext, spec: PromoteStage, train: Trained) -> _Chosen:
    """The best trial, or the best training of the finalist with the best mean."""
    best = context.trial_of(train, train.result.best.trial)
    if not spec.seeds:
        return _Chosen(best.number, best, train.record, configuration_of(context, train.spec, best))
    finalists = retrain_finalists(context, train, finalists=spec.finalists, seeds=spec.seeds, refits=spec.refit)
    trained = best_retraining(context, train, finalists[0])
    context.progress.note(_describe_finalists(finalists, context.metric))
    configuration = configuration_of(context, train.spec, trained)
    return _Chosen(finalists[0].trial, trained, context.stage, configuration, tuple(finalists))


def _build(
    context: StageContext, train: Trained, chosen: _Chosen, averaging: PluginChoice, stop_at: int | None
) -> _Built:
    """Average the checkpoints of the chosen training, up to the epoch `stop_at` unless it is None.

    Raises:
        StageFailedError: A checkpoint is missing or damaged.
    """
    from trainers.data.images import load_images
    from trainers.hardware.devices import computing_in, pick_device
    from trainers.tasks.averaging import ValidationJudge, average_checkpoints
    from trainers.training.checkpoints import CheckpointError

    sources = sources_of(context, train, chosen.trained)
    is_new = chosen.stage.id == context.stage.id
    stopped = stop_at if stop_at is None or stop_at < sources.last_epoch else None
    problem = sources.problem(averaging, context.metric, stop_at=stopped) if is_new else None
    if is_new and reads_of(averaging) == "trials":
        problem = f"{averaging.name} mixes the trials of the search"
    if problem is not None:
        context.progress.note(f"{problem}, which the new training does not offer: its last weights are taken")
        averaging, stop_at, stopped = PluginChoice(name="last"), None, None
    configuration = chosen.configuration.model_copy(update={"averaging": averaging, "stop_at": stop_at})
    try:
        judge = ValidationJudge(configuration, load_images(configuration.data), pick_device())
        with computing_in(context.spec.resources.precision):
            weights, _ = average_checkpoints(
                averaging, sources.checkpoints, judge, stop_at=stopped, trials=sources.trials
            )
    except CheckpointError as error:
        raise StageFailedError(
            f"{error} Restore the file, or delete the folder {sources.checkpoints[0].parent} and train trial "
            f"{chosen.trained.number} again: {TRAIN_AGAIN}."
        ) from error
    return _Built(chosen, weights, configuration, None)


def _refit(context: StageContext, train: Trained, before: _Built) -> _Built:
    """The champion trained once more, on all images but the test part; the one before if a deadline has passed.

    Its temperature is that of the champion before, because no other images are left to fit it on.
    """
    from trainers.champion import temperature_of
    from trainers.data.images import load_images

    averaging, stop_at = before.configuration.averaging, before.configuration.stop_at
    chooses = needs_validation(averaging)
    trained = refit(context, train, before.chosen.trained, stop_at=None if chooses else stop_at)
    if trained is None:
        context.progress.note("the deadline or budget ended before the champion was trained on all images")
        return before
    chosen = before.chosen._replace(
        trained=trained, stage=context.stage, configuration=retrained_configuration(context, train, trained)
    )
    if chooses:
        context.progress.note(
            f"averaging {describe_plugin(averaging)} chooses by validation images, of which none is left: the last "
            "weights are taken"
        )
        averaging, stop_at = PluginChoice(name="last"), None
    context.progress.note(
        f"the champion was trained again on the training and validation part ({trained.metrics['epochs']:.0f} epochs): "
        "no validation figure is left"
    )
    if stop_at is not None and chosen.configuration.stop_at is None:  # the training is shorter than that
        stop_at = None
    data = load_images(before.configuration.data)
    temperature = temperature_of(before.weights, before.configuration, data)
    return _build(context, train, chosen, averaging, stop_at)._replace(temperature=temperature)


def _describe_finalists(finalists: Sequence[Finalist], metric: DecidingMetric) -> str:
    """The finalists in one line, best mean first."""
    shown = [
        f"trial {one.trial}: {metric.text(one.mean)}"
        + (f" (standard deviation {metric.amount(one.spread)})" if one.spread is not None else "")
        for one in finalists
    ]
    return f"mean validation {metric.words} with new seeds: {'; '.join(shown)}"


def _finalist_table(finalists: Sequence[Finalist]) -> str:
    rows = [
        [one.trial, number, value, one.mean, one.spread]
        for one in finalists
        for number, value in zip(one.retrained, one.values, strict=True)
    ]
    return csv_text(["trial", "training", "value", "mean", "standard deviation"], rows)


PROMOTE = StageKind(
    model=PromoteStage,
    result=PromoteResult,
    run=run_promote,
    line=lambda result: (
        f"test {'accuracy ' if result.test.metric == ACCURACY else ''}{describe_result(result.test)}"
        if result.test is not None
        else f"test accuracy {100 * result.test_accuracy:.2f} %"
    ),
)
