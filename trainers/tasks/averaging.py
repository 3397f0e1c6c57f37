"""Several checkpoints of one training made into one model, judged on the validation part."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from plugins.protocols import Averager, StateDict
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from trainers.config import AverageTask, TaskOutcome
from trainers.data.images import ImageData
from trainers.models.building import build_model
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, evaluate


class SavedCheckpoints(Sequence[StateDict]):
    """Weights of checkpoints, each read from disk when it is first used."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._loaded: dict[int, StateDict] = {}

    def __len__(self) -> int:
        return len(self._folders)

    @overload
    def __getitem__(self, index: int) -> StateDict: ...
    @overload
    def __getitem__(self, index: slice) -> list[StateDict]: ...
    def __getitem__(self, index: int | slice) -> StateDict | list[StateDict]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if position not in self._loaded:
            self._loaded[position] = load_weights(self._folders[position])
        return self._loaded[position]

    @property
    def num_read(self) -> int:
        """How many were used so far."""
        return len(self._loaded)


def average(task: AverageTask, data: ImageData, device: torch.device) -> TaskOutcome:
    """Average a training's checkpoints and evaluate the result.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
        ValueError: There are fewer checkpoints than the method needs.
    """
    weights, num_averaged = average_checkpoints(task.averaging, task.checkpoints)
    configuration = task.configuration
    model = build_model(configuration.topology, data.task, seed=configuration.seed, device=device)
    model.load_state_dict(weights)
    result = evaluate(model, data.validation, Normalizer(data.mean, data.std, device))
    return TaskOutcome(
        state="complete",
        metrics={"val_accuracy": result.accuracy, "val_loss": result.loss, "num_averaged": float(num_averaged)},
    )


def average_checkpoints(averaging: PluginChoice, folders: Sequence[Path]) -> tuple[dict[str, Tensor], int]:
    """The averaged weights of checkpoint folders, oldest first, and how many of them were used.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
        ValueError: There are fewer checkpoints than the method needs.
    """
    averager: Averager = create("averaging", averaging.name, averaging.settings)
    checkpoints = SavedCheckpoints(folders)
    return averager.average(checkpoints), checkpoints.num_read
