"""Decides whether a training that has ended can be continued for more epochs, and settles its checkpoints.

A training can be continued if its steps so far do not depend on the number of epochs: with a constant learning rate
after warm-up, but not with one that has decayed to its end. A training that cannot be continued begins again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from plugins.protocols import is_independent_of_length
from plugins.registry import create
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice, Recipe
from trainers.config import Configuration, EpochReport, TrainTask
from trainers.training.checkpoints import (
    CheckpointError,
    accepted_digests,
    discard,
    epoch_folders,
    has_optimizer,
    read_manifest,
)

Dependence = Literal["ramp", "plugin", "warm-up", "if set", "none"]
"""When a recipe field makes earlier steps depend on the number of epochs."""

DEPENDENCE: Mapping[str, Dependence] = {
    "learning_rate": "ramp",
    "weight_decay": "ramp",
    "batch_size": "ramp",
    "schedule": "plugin",
    "warmup": "warm-up",
    "label_smoothing": "ramp",
    "drop_path": "ramp",
    "augmentation": "none",
    "curriculum": "plugin",
    "gradient_clip": "ramp",
    "optimizer": "none",
    "rates": "none",
    "learning_rate_scaling": "none",
    "base_batch_size": "none",
    "loss": "plugin",
    "dropout": "ramp",
    "augmentation_strength": "ramp",
    "mixing": "none",
    "mixing_strength": "ramp",
    "image_size": "ramp",
    "class_weights": "none",
    "ema": "none",
    "swa": "if set",
    "spike_guard": "none",
}
"""One entry for each field of a recipe."""


def reason_to_retrain(recipe: Recipe, *, before: int, epochs: int) -> str | None:
    """Why a training that has ended cannot be continued; `None` if it can.

    Args:
        recipe: The recipe of the training.
        before: Number of epochs for which it was planned.
        epochs: The larger number of epochs for which it is to be trained.
    """
    for name, dependence in DEPENDENCE.items():
        value = getattr(recipe, name)
        if dependence == "ramp" and isinstance(value, Ramp):
            return f"recipe.{name} changes with the progress of the training"
        if dependence == "if set" and value is not None:
            return f"recipe.{name} depends on the number of epochs"
        if dependence == "warm-up" and value * epochs > before:
            return f"the warm-up of {epochs} epochs is longer than the {before} epochs of the training"
        if dependence == "plugin":
            choices: tuple[PluginChoice, ...] = value if isinstance(value, tuple) else (value,)
            for choice in choices:
                if not is_independent_of_length(create(PLUGIN_FIELDS[name], choice.name, choice.settings)):
                    return f"{name} `{choice.name}` depends on the number of epochs"
    return None


def is_resumable(folder: Path) -> bool:
    """Whether the newest checkpoint in a training's folder still has the state of its optimizer."""
    folders = epoch_folders(folder)
    return bool(folders) and has_optimizer(folders[-1])


def saved_history(task: TrainTask) -> tuple[EpochReport, ...]:
    """The reports of a training up to its newest checkpoint, oldest first; empty if it has none."""
    accepted = accepted_digests(task.configuration)
    for path in reversed(epoch_folders(task.folder)):
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            continue
        return manifest.history if manifest.configuration in accepted else ()
    return ()


def settle_earlier_checkpoints(task: TrainTask) -> frozenset[str]:
    """Remove the checkpoints of shorter trainings that cannot be continued, and return the digests of the others.

    Args:
        task: The training; its `earlier_epochs` are the numbers of epochs for which it was planned before.

    Raises:
        trainers.training.checkpoints.CheckpointWriteError: A checkpoint cannot be removed.
    """
    configuration = task.configuration
    known = {
        digest: reason_to_retrain(configuration.recipe, before=epochs, epochs=configuration.epochs)
        for epochs in task.earlier_epochs
        for digest in accepted_digests(_with_epochs(configuration, epochs))
    }
    for path in reversed(epoch_folders(task.folder)):
        try:
            found = read_manifest(path).configuration
        except CheckpointError:
            continue  # `load_newest` reports it
        if found in known and (known[found] is not None or not has_optimizer(path)):
            discard(task.folder)
        break
    return frozenset(digest for digest, reason in known.items() if reason is None)


def _with_epochs(configuration: Configuration, epochs: int) -> Configuration:
    return configuration.model_copy(update={"epochs": epochs})
