"""Stage `averaging`: averages the best trial's checkpoints in several ways; the validation part decides."""

from pathlib import Path

from orchestrator.engines.interfaces import Search
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.spec.study_file import AveragingStage
from orchestrator.stages.context import StageContext, StageFailedError, StageOutcome
from orchestrator.stages.searching import run_search
from orchestrator.stages.train import ACCURACY, best_trial, configuration_of, sort_trials, trained
from orchestrator.store.records import TrialRecord
from search_spaces.recipes import base_point, describe_plugin
from trainers.config import AverageTask


def run_averaging(context: StageContext, spec: AveragingStage) -> StageOutcome:
    """Search the averaging method and its settings over the checkpoints of the best trained trial."""
    train_spec, trials = trained(context)
    source = best_trial(trials)
    configuration = configuration_of(context, train_spec, source)
    checkpoints = checkpoint_folders(context, source)
    search = Search(
        num_trials=spec.num_trials,
        objectives=(ACCURACY,),
        suggester=OptunaSuggester(
            spec.dimensions,
            objectives=(ACCURACY,),
            sampler=spec.sampler,
            seed=context.seed,
            first=[base_point(spec.dimensions)],
        ),
        make_task=lambda trial: AverageTask(
            configuration=configuration, checkpoints=checkpoints, averaging=spec.decode(trial.point)
        ),
    )
    averages = sort_trials(run_search(context, search))
    best = averages[0]
    method = spec.decode(best.point)
    gain = best.metrics["val_accuracy"] - source.metrics["val_accuracy"]
    return StageOutcome(
        result={
            "averaging": method.model_dump(mode="json"),
            "averaged_from": source.number,
            "num_checkpoints": len(checkpoints),
            "val_accuracy": best.metrics["val_accuracy"],
            "val_loss": best.metrics["val_loss"],
            "gain": gain,
            "gain_val_loss": source.metrics["val_loss"] - best.metrics["val_loss"],
        },
        summary=f"{describe_plugin(method)} over {len(checkpoints)} checkpoints of trial {source.number}: "
        f"{100 * best.metrics['val_accuracy']:.1f} % ({100 * gain:+.2f} points)",
        metrics={"val_accuracy": best.metrics["val_accuracy"], "val_loss": best.metrics["val_loss"], "gain": gain},
        texts={"averaging.csv": _table(averages, spec)},
    )


def checkpoint_folders(context: StageContext, trial: TrialRecord) -> tuple[Path, ...]:
    """Folders of a trial's checkpoints, oldest first.

    Raises:
        StageFailedError: None is left on disk.
    """
    folders = tuple(record.path for record in context.store.checkpoints(trial.id) if record.path.is_dir())
    if not folders:
        raise StageFailedError(
            f"trial {trial.number} must have a checkpoint on disk, but none is left below {context.folder.parent}. "
            "Restore the folder, or run the study again under another name."
        )
    return folders


def _table(trials: list[TrialRecord], spec: AveragingStage) -> str:
    lines = ["trial,method,val_accuracy,val_loss"]
    for trial in trials:
        accuracy, loss = trial.metrics["val_accuracy"], trial.metrics["val_loss"]
        lines.append(f'{trial.number},"{describe_plugin(spec.decode(trial.point))}",{accuracy:.6g},{loss:.6g}')
    return "\n".join(lines) + "\n"
