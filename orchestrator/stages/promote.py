"""Stage `promote`: tests the best model once on the untouched test part and registers it as champion."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.spec.stage_model import StageModel, StageName
from orchestrator.stages.averaging import AVERAGING, AveragingResult
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.retention import checkpoint_folders
from orchestrator.stages.stopping import STOPPING, StoppingResult
from orchestrator.stages.train import TRAIN, configuration_of
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration
from trainers.results.model_report import ModelReport, describe_accuracy


class PromoteStage(StageModel):
    """Tests the best model once on the test part and registers it as champion."""

    reads_test_part: ClassVar[bool] = True
    stage: Literal["promote"]
    name: StageName = Field(default="promote", description="name of the stage in reports; unique in the study")

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train",)


class PromoteResult(StageResult):
    """The champion."""

    test_accuracy: float
    test_loss: float
    val_accuracy: float
    val_loss: float
    parameters: float
    macs: float
    trial: int
    """Number of the trial in the train stage."""
    folder: Path
    """Folder of the model, relative to the study's folder."""
    configuration: Configuration
    averaged: AveragingResult | None
    recommended_stopping: StoppingResult | None
    test: ModelReport | None = None
    """What the champion does on the test part; `None` if version 0.1.0 tested it."""


def run_promote(context: StageContext, spec: PromoteStage) -> StageOutcome:  # noqa: ARG001 - the stage has no settings
    """Build the champion from the best trial's checkpoints, test it, and save it with its full configuration."""
    from orchestrator.reports.model_files import draw_report, report_metrics, report_texts
    from orchestrator.reports.summary import configuration_yaml
    from orchestrator.stages.trial_pages import mark_champion
    from trainers.champion import finish_model
    from trainers.data.images import load_images
    from trainers.hardware.devices import pick_device
    from trainers.tasks.averaging import ValidationJudge, average_checkpoints
    from trainers.training.checkpoints import CheckpointError

    train, averaged, stopping = context.required(TRAIN), context.earlier(AVERAGING), context.earlier(STOPPING)
    best = context.trial_of(train, train.result.best.trial)
    averaging = PluginChoice(name=train.spec.rank_by) if averaged is None else averaged.result.averaging
    configuration = configuration_of(context, train.spec, best).model_copy(update={"averaging": averaging})
    context.progress.stage_began(context.stage, total=1, done=0)
    folder = context.folder / "champion"
    data = load_images(configuration.data)
    try:
        judge = ValidationJudge(configuration, data, pick_device())
        weights, _ = average_checkpoints(averaging, checkpoint_folders(context, best), judge)
    except CheckpointError as error:
        raise StageFailedError(f"{error} Restore the file, or run the study again under another name.") from error
    metrics, report, test = finish_model(folder, weights, configuration, data)
    result = PromoteResult(
        **metrics,
        trial=best.number,
        folder=folder.relative_to(context.folder.parent),
        configuration=configuration,
        averaged=averaged.result if averaged is not None else None,
        recommended_stopping=stopping.result if stopping is not None else None,
        test=report,
    )
    described = (
        f"`{configuration.topology}`, {describe_accuracy(report)} on the test part; "
        f"trial {best.number}, averaging {averaging.name}."
    )
    advice = result.model_dump(mode="json")["recommended_stopping"]
    return StageOutcome(
        result=result,
        summary=f"champion: {describe_accuracy(report)} on the test part ({configuration.topology})",
        metrics={**metrics, **report_metrics(report)},
        texts={"champion.yaml": configuration_yaml(configuration, advice), **report_texts(report)},
        plots=draw_report(report, test, context.folder),
        events=tuple(
            context.run_tree.champion_promoted(
                context.stage,
                folder,
                tags={
                    "topology": configuration.topology,
                    "test_accuracy": f"{metrics['test_accuracy']:.4f}",
                    "averaged_from": context.run_tree.trial_key(train.record, best.number),
                    **({"initialised_from": train.result.weights.lineage} if train.result.weights else {}),
                },
                text=described,
            )
            + mark_champion(context, train.record, best.number, text=f"The champion: {described}")
        ),
    )


PROMOTE = StageKind(
    model=PromoteStage,
    result=PromoteResult,
    run=run_promote,
    line=lambda result: (
        f"test accuracy {describe_accuracy(result.test)}"
        if result.test is not None
        else f"test accuracy {100 * result.test_accuracy:.2f} %"
    ),
)
