"""Averages checkpoints of a training into one model and evaluates it on the validation part."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from plugins.metrics.deciding import DecidingMetric
from plugins.metrics.names import metric_key
from plugins.protocols import Averager, Evaluated, EvaluatingAverager, StateDict
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from trainers.config import AverageTask, Configuration, TaskOutcome
from trainers.data.images import ImageData
from trainers.models.building import build_model
from trainers.training.best_epoch import best_checkpoint
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, evaluate

BEST = "best"
"""What a method `reads` if it receives the best checkpoint alone."""


class SavedCheckpoints(Sequence[StateDict]):
    """Weights (or maintained averages) of checkpoints, read from disk on first use.

    Args:
        folders: Folders of the checkpoints, oldest first.
        average: Name of an average that training maintained; `None` for the weights.
    """

    def __init__(self, folders: Sequence[Path], average: str | None = None) -> None:
        self._folders = folders
        self._average = average
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
            self._loaded[position] = load_weights(self._folders[position], average=self._average)
        return self._loaded[position]

    @property
    def num_read(self) -> int:
        """Number of checkpoints read so far."""
        return len(self._loaded)


def average(task: AverageTask, data: ImageData, device: torch.device) -> TaskOutcome:
    """Average the checkpoints of a training and evaluate the result.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or lacks an average that the method reads.
        ValueError: There are fewer checkpoints than the method needs.
    """
    judge = ValidationJudge(task.configuration, data, device)
    weights, num_averaged = average_checkpoints(task.averaging, task.checkpoints, judge)
    result = judge(weights)
    return TaskOutcome(
        state="complete",
        metrics={
            **{metric_key(name): value for name, value in result.metrics.items()},
            "val_accuracy": result.accuracy,
            "val_loss": result.loss,
            "num_averaged": float(num_averaged),
        },
    )


def average_checkpoints(
    averaging: PluginChoice, folders: Sequence[Path], judge: "ValidationJudge"
) -> tuple[dict[str, Tensor], int]:
    """Average checkpoints; returns the weights and the number of checkpoints used.

    Args:
        averaging: The method.
        folders: Folders of the checkpoints, oldest first.
        judge: Evaluates state dicts on validation images, for methods that need it, and knows the metric.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or lacks an average that the method reads.
        ValueError: There are fewer checkpoints than the method needs.
    """
    averager: Averager | EvaluatingAverager = create("averaging", averaging.name, averaging.settings)
    reads = getattr(averager, "reads", None)
    if reads == BEST:
        folders, reads = [best_checkpoint(folders, judge.metric)], None
    checkpoints = SavedCheckpoints(folders, reads)
    if isinstance(averager, EvaluatingAverager):
        return averager.average_by(checkpoints, judge), checkpoints.num_read
    return averager.average(checkpoints), checkpoints.num_read


class ValidationJudge:
    """Evaluates state dicts on validation images. The model is built on first use."""

    def __init__(self, configuration: Configuration, data: ImageData, device: torch.device) -> None:
        self._configuration = configuration
        self._data = data
        self._device = device
        self._normalizer = Normalizer(data.mean, data.std, device)
        self._model: nn.Module | None = None
        self.metric = DecidingMetric.of(configuration.metric)
        """The metric by which state dicts are compared."""

    def __call__(self, weights: StateDict) -> Evaluated:
        if self._model is None:
            configuration = self._configuration
            self._model = build_model(
                configuration.topology, self._data.task, seed=configuration.seed, device=self._device
            )
        self._model.load_state_dict(dict(weights))
        metric = self.metric
        found = evaluate(self._model, self._data.validation, self._normalizer, metric=metric.choice)
        return Evaluated(
            found.loss, found.accuracy, found.metrics, score=metric.score(found.metrics[metric.choice.name])
        )
