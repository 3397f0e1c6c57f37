"""Stage `promote`: tests the best model once on the untouched test part and registers it as champion."""

from typing import Any

from orchestrator.reports.summary import configuration_yaml
from orchestrator.spec.study_file import PromoteStage
from orchestrator.stages.averaging import checkpoint_folders
from orchestrator.stages.context import StageContext, StageFailedError, StageOutcome
from orchestrator.stages.train import best_trial, configuration_of, trained
from search_spaces.recipes import PluginChoice


def run_promote(context: StageContext, spec: PromoteStage) -> StageOutcome:  # noqa: ARG001 - it has no settings yet
    """Build the champion from the best trial's checkpoints, test it, and keep it with its whole configuration."""
    from trainers.champion import finish_model
    from trainers.data.images import load_images
    from trainers.hardware.devices import pick_device
    from trainers.tasks.averaging import ValidationJudge, average_checkpoints
    from trainers.training.checkpoints import CheckpointError

    train_spec, trials = trained(context)
    best = best_trial(trials)
    averaging, averaged = _averaging(context)
    configuration = configuration_of(context, train_spec, best).model_copy(update={"averaging": averaging})
    context.progress.stage_began(context.stage, total=1, done=0)
    folder = context.folder / "champion"
    data = load_images(configuration.data)
    try:
        judge = ValidationJudge(configuration, data, pick_device())
        weights, _ = average_checkpoints(averaging, checkpoint_folders(context, best), judge)
    except CheckpointError as error:
        raise StageFailedError(f"{error} Restore the file, or run the study again under another name.") from error
    metrics = finish_model(folder, weights, configuration, data)
    stopping = context.earlier("stopping")
    result: dict[str, Any] = {
        **metrics,
        "trial": best.number,
        "folder": str(folder.relative_to(context.folder.parent)),
        "configuration": configuration.model_dump(mode="json"),
        "averaged": averaged,
        "recommended_stopping": stopping.result if stopping is not None else None,
    }
    return StageOutcome(
        result=result,
        summary=f"champion: {100 * metrics['test_accuracy']:.1f} % on the test part ({configuration.topology})",
        metrics=metrics,
        texts={"champion.yaml": configuration_yaml(configuration, result["recommended_stopping"])},
        events=tuple(
            context.run_tree.champion_promoted(
                context.stage,
                folder,
                tags={
                    "topology": configuration.topology,
                    "test_accuracy": f"{metrics['test_accuracy']:.4f}",
                    "averaged_from": context.run_tree.trial_key(_train_stage(context), best.number),
                },
                text=f"`{configuration.topology}`, {100 * metrics['test_accuracy']:.1f} % on the test part; "
                f"trial {best.number}, averaging {averaging.name}.",
            )
        ),
    )


def _averaging(context: StageContext) -> tuple[PluginChoice, dict[str, Any] | None]:
    stage = context.earlier("averaging")
    if stage is None:
        return PluginChoice(name="last"), None
    return PluginChoice.model_validate(stage.result["averaging"]), stage.result


def _train_stage(context: StageContext) -> Any:
    stage = context.earlier("train")
    if stage is None:  # the spec's own validation demands one
        raise LookupError("promote needs a train stage before it")
    return stage
