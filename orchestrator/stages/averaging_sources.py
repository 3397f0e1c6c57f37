"""The checkpoints that a stage averages: those of one trial, and the newest ones of its topology's other trials."""

from pathlib import Path
from typing import NamedTuple

from orchestrator.stages.context import StageContext
from orchestrator.stages.kind import FinishedStage
from orchestrator.stages.retention import checkpoint_folders, kept_checkpoints
from orchestrator.stages.stopping import STOPPING, whole_curves
from orchestrator.stages.train_result import TrainResult, ranking, sort_trials
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import DecidingMetric
from plugins.registry import create
from search_spaces.recipes import PluginChoice, describe_plugin
from trainers.config import EpochReport
from trainers.storage.artifacts import artifacts_at


class Sources(NamedTuple):
    """The checkpoints that averages of a trial can be made of."""

    checkpoints: tuple[Path, ...]
    """Folders of the trial's checkpoints, oldest first."""
    epochs: tuple[int, ...]
    """Their epochs."""
    reports: tuple[EpochReport, ...]
    """The trial's curve."""
    trials: tuple[Path, ...]
    """The newest checkpoint of each trial of the same topology, the best trial last."""
    stopped_at: int | None
    """Where the criterion of the preceding stopping stage ends the trial; `None` if it does not or was not replayed."""

    @property
    def last_epoch(self) -> int:
        """The trial's last epoch."""
        return self.epochs[-1]

    def num_up_to(self, epoch: int) -> int:
        """Number of checkpoints of consecutive epochs that end with an epoch."""
        count = 0
        while epoch - count in self.epochs:
            count += 1
        return count

    def problem(self, method: PluginChoice, metric: DecidingMetric, *, stop_at: int | None) -> str | None:
        """Why an average cannot be computed; `None` if it can.

        Args:
            method: The averaging method.
            metric: The metric that chooses the best epoch.
            stop_at: The epoch of the newest checkpoint to use; `None` for the last one.
        """
        averager = create("averaging", method.name, method.settings)
        reads = getattr(averager, "reads", None)
        if reads == "trials":
            if stop_at is not None:
                return f"{method.name} mixes trials as they ended"
            count, what = len(self.trials), "trials of the topology"
        elif reads == "best":
            if stop_at is None:
                return None
            from trainers.training.best_epoch import best_report  # imports torch

            best = best_report(self.reports[:stop_at], metric).epoch
            return None if best in self.epochs else f"{method.name} needs the checkpoint of epoch {best}"
        else:
            count, what = self.num_up_to(stop_at or self.last_epoch), "checkpoints"
            if stop_at is not None:
                what += f" up to epoch {stop_at}"
            folder = self.checkpoints[self.epochs.index(stop_at or self.last_epoch)] if count else None
            if reads == "swa" and folder is not None and not artifacts_at(folder).has(folder / "swa.safetensors"):
                return f"{method.name} needs an epoch after the progress `swa` of the recipe"
        needed = averager.num_needed
        return None if needed <= count else f"{describe_plugin(method)} needs {needed} {what}"


def sources_of(
    context: StageContext,
    train: FinishedStage[TrainStage, TrainResult],
    trial: TrialRecord,
    *,
    replay_stopping: bool = False,
) -> Sources:
    """The checkpoints that averages of a trial can be made of.

    Args:
        context: The context of the stage.
        train: The train stage.
        trial: A trial of it, or a later training of one.
        replay_stopping: Whether to find where the criterion of the preceding stopping stage would have ended the trial.

    Raises:
        orchestrator.stages.context.StageFailedError: No checkpoint of the trial is left on disk.
    """
    folders = checkpoint_folders(context, trial)
    epochs = {record.path: record.epoch for record in context.store.checkpoints(trial.id)}
    reports = tuple(context.store.reports(trial.id))
    return Sources(
        checkpoints=folders,
        epochs=tuple(epochs[folder] for folder in folders),
        reports=reports,
        trials=_newest_of_trials(context, train, trial),
        stopped_at=_stopping_epoch(context, train, trial) if replay_stopping else None,
    )


def _newest_of_trials(
    context: StageContext, train: FinishedStage[TrainStage, TrainResult], trial: TrialRecord
) -> tuple[Path, ...]:
    usable = [other for other in context.store.trials(train.record.id) if other.is_usable]
    alike = [other for other in usable if other.point["topology"] == trial.point["topology"]]
    best_first = [trial, *(one for one in sort_trials(alike, (ranking(context, train.spec),)) if one.id != trial.id)]
    newest = [_newest(context, one) for one in reversed(best_first)]
    return tuple(folder for folder in newest if folder is not None)


def _newest(context: StageContext, trial: TrialRecord) -> Path | None:
    """The newest checkpoint of a trial; `None` if none is left on disk."""
    left = kept_checkpoints(context.store, trial)
    return left[-1].path if left else None


def _stopping_epoch(
    context: StageContext, train: FinishedStage[TrainStage, TrainResult], trial: TrialRecord
) -> int | None:
    """Where the chosen criterion ends a trial; `None` if it does not, or if the trial was stopped early anyway."""
    from trainers.tasks.replay import replay_curves

    criterion = context.required(STOPPING).result.criterion
    curves = whole_curves(context, train)
    replayed = replay_curves(create("stopping", criterion.name, criterion.settings), list(curves.values()))
    return dict(zip(curves, (one.stopped_after for one in replayed), strict=True)).get(trial.number)
