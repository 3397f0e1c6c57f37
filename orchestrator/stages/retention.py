"""Folders of checkpoints, and the cleanup after training."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.spec.stage_model import StageModel
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.store.records import TrialRecord
from trainers.config import CheckpointRecord
from trainers.storage.addresses import place_text
from trainers.storage.artifacts import artifacts_at
from trainers.storage.interface import MANIFEST

if TYPE_CHECKING:
    from orchestrator.store.repository import Store

CUT = "cut"
"""Key in the details of a training that ended before its last epoch because of a budget."""

TRAIN_AGAIN = "run or resume the study with --retry-failed"
"""What trains a trial again whose weights are gone."""


def trial_folder(context: StageContext, trial: TrialRecord) -> Path:
    """Folder of a training's checkpoints."""
    return trial_folder_in(context.folder, trial.number)


def trial_folder_in(stage_folder: Path, number: int) -> Path:
    """Folder of a training's checkpoints in the folder of its stage."""
    return stage_folder / f"trial-{number:04d}"


def checkpoint_folders(context: StageContext, trial: TrialRecord) -> tuple[Path, ...]:
    """Folders of a trial's checkpoints, oldest first. Missing checkpoints are reported.

    Raises:
        StageFailedError: No checkpoint is left.
    """
    kept = kept_checkpoints(context.store, trial)
    folders = tuple(record.path for record in kept)
    if not folders:
        raise StageFailedError(
            f"trial {trial.number} must have a checkpoint, but none is left below {place_text(context.folder.parent)}. "
            f"Restore the folder, or train the trial again: {TRAIN_AGAIN}."
        )
    epochs = {record.epoch for record in kept}
    gone = [record.epoch for record in context.store.checkpoints(trial.id) if record.epoch not in epochs]
    if gone:
        context.progress.note(
            f"checkpoints of trial {trial.number} are gone (epoch {', '.join(map(str, gone))}): the weights of epoch "
            f"{', '.join(map(str, sorted(epochs)))} are used. To have all again: {TRAIN_AGAIN}"
        )
    return folders


def kept_checkpoints(store: "Store", trial: TrialRecord) -> list[CheckpointRecord]:
    """A trial's checkpoints that still exist, oldest first."""
    records = store.checkpoints(trial.id)
    return [one for one in records if artifacts_at(one.path).is_committed(one.path, manifest=MANIFEST)]


def num_kept(later: Sequence[StageModel], *, keep_checkpoints: int, epochs: int) -> int:
    """Number of newest epochs whose weights a training keeps: `keep_checkpoints`, or more if a later stage needs them.

    Args:
        later: The stages after the train stage; those after the next train stage read other trainings.
        keep_checkpoints: The setting of the train stage.
        epochs: Number of epochs of the training.
    """
    readers = itertools.takewhile(lambda stage: stage.stage != "train", later)
    return max([keep_checkpoints, *(stage.checkpoints_read(epochs) for stage in readers)])


def num_kept_by(context: StageContext, name: str, *, keep_checkpoints: int, epochs: int) -> int:
    """Like `num_kept`, for the train stage of a study with the given name."""
    stages = context.spec.stages
    (position,) = (index for index, stage in enumerate(stages) if stage.name == name)
    return num_kept(stages[position + 1 :], keep_checkpoints=keep_checkpoints, epochs=epochs)


def drop_checkpoints(
    context: StageContext,
    trials: Sequence[TrialRecord],
    *,
    best: TrialRecord,
    may_continue: Callable[[TrialRecord], bool],
) -> None:
    """Delete checkpoints that are no longer needed.

    All weights of the best trial are kept, because later stages average them, and the newest weights of each other
    trial, because MLflow shows them. Optimizer states are deleted, except the newest one of a training that may
    continue if the study gets more epochs or a larger budget. If a file cannot be deleted, the study continues.
    """
    from trainers.training.checkpoints import CheckpointWriteError, retire  # imports torch

    for trial in trials:
        records = context.store.checkpoints(trial.id)
        kept = records if trial.number == best.number else records[-1:]
        folders = {trial_folder(context, trial), *(record.path.parent for record in records)}  # see engines.generations
        try:
            for folder in folders:
                resumable = {record.path for record in kept[-1:]} if may_continue(trial) else set()
                retire(folder, keep={record.path for record in kept}, resumable=resumable)
        except CheckpointWriteError as error:
            context.progress.note(f"old checkpoints of trial {trial.number} could not be deleted: {error.__cause__}")
            continue
        if len(kept) < len(records):
            context.store.forget_checkpoints(trial.id, but={record.epoch for record in kept})
