"""Averages checkpoints of a training into one model and evaluates it on the validation part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from plugins.metrics.deciding import DecidingMetric
from plugins.metrics.names import metric_key
from plugins.protocols import Averager, Evaluated, EvaluatingAverager, Signal, StateDict
from plugins.registry import create
from search_spaces.ema_rates import ema_name
from search_spaces.recipes import PluginChoice
from trainers.config import AverageTask, Configuration, TaskOutcome
from trainers.data.images import ImageData
from trainers.models.building import build_model
from trainers.training.best_epoch import best_checkpoint, best_report
from trainers.training.checkpoints import epoch_of, load_weights, read_manifest
from trainers.training.evaluation import Normalizer, judge, logits_of
from trainers.training.signal_arithmetic import class_means


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

    `epochs_saved` is the fraction of the training's epochs after `stop_at`. `forward_passes` counts the passes of the
    validation part, including the final one.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or lacks an average that the method reads.
        ValueError: There are fewer checkpoints than the method needs.
    """
    judge = ValidationJudge(task.configuration, data, device)
    weights, num_averaged = average_checkpoints(
        task.averaging, task.checkpoints, judge, stop_at=task.stop_at, trials=task.trials
    )
    result = judge(weights)
    last = epoch_of(task.checkpoints[-1])
    return TaskOutcome(
        state="complete",
        metrics={
            **{metric_key(name): value for name, value in result.metrics.items()},
            "val_accuracy": result.accuracy,
            "val_loss": result.loss,
            "num_averaged": float(num_averaged),
            "epochs_saved": 1 - min(last if task.stop_at is None else task.stop_at, last) / last,
            "forward_passes": float(judge.num_passes),
        },
    )


def average_checkpoints(
    averaging: PluginChoice,
    folders: Sequence[Path],
    judge: "ValidationJudge",
    *,
    stop_at: int | None = None,
    trials: Sequence[Path] = (),
) -> tuple[dict[str, Tensor], int]:
    """Average checkpoints; returns the weights and the number of checkpoints used.

    Args:
        averaging: The method.
        folders: Folders of the checkpoints, oldest first.
        judge: Evaluates state dicts on validation images, for methods that need it, and knows the metric.
        stop_at: Epoch of the newest checkpoint to use; `None` for the last one.
        trials: The newest checkpoint of each trial of the same topology, the best trial last.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or lacks an average that the method reads.
        ValueError: There are fewer checkpoints than the method needs.
    """
    averager: Averager | EvaluatingAverager = create("averaging", averaging.name, averaging.settings)
    checkpoints = _checkpoints_for(averager, averaging.name, folders, judge, stop_at=stop_at, trials=trials)
    if isinstance(averager, EvaluatingAverager):
        return averager.average_by(checkpoints, judge), checkpoints.num_read
    return averager.average(checkpoints), checkpoints.num_read


def _checkpoints_for(
    averager: Any,
    name: str,
    folders: Sequence[Path],
    judge: "ValidationJudge",
    *,
    stop_at: int | None,
    trials: Sequence[Path],
) -> SavedCheckpoints:
    """What a method receives, as its `reads` says."""
    reads = getattr(averager, "reads", None)
    if reads == "trials":
        if not trials or stop_at is not None:
            raise ValueError(
                f"{name} mixes several trained trials of a study, as they ended. Use it in an `averaging` stage, "
                "without `stop_at`."
            )
        return SavedCheckpoints(trials)
    until = [folder for folder in folders if stop_at is None or epoch_of(folder) <= stop_at]
    if reads == "best":
        if stop_at is not None:
            history = read_manifest(folders[-1]).history[:stop_at]
            _check_kept(until, best_report(history, judge.metric).epoch, stop_at)
        return SavedCheckpoints([best_checkpoint(until, judge.metric)])
    consecutive = newest_consecutive(until)
    if stop_at is not None:
        _check_kept(consecutive, stop_at, stop_at)
    if reads == "ema":
        reads = ema_name(judge.configuration.recipe.ema, getattr(averager, "rate", None))
    return SavedCheckpoints(consecutive, reads)


def _check_kept(folders: Sequence[Path], epoch: int, stop_at: int) -> None:
    """Raise ValueError unless the checkpoint of an epoch is among the folders."""
    if epoch not in map(epoch_of, folders):
        raise ValueError(
            f"an average with `stop_at: {stop_at}` needs the checkpoint of epoch {epoch}, but it was not kept. Raise "
            "`keep_checkpoints`, or choose a later epoch."
        )


def newest_consecutive(folders: Sequence[Path]) -> list[Path]:
    """The newest checkpoints without a gap between their epochs, oldest first.

    The checkpoint of the best epoch, which is kept longer, is no neighbour of the others.
    """
    found: list[Path] = []
    expected: int | None = None
    for folder in reversed(folders):
        epoch = epoch_of(folder)
        if expected is not None and epoch != expected:
            break
        found.insert(0, folder)
        expected = epoch - 1
    return found


class ValidationJudge:
    """Evaluates state dicts on validation images. The model is built on first use."""

    def __init__(self, configuration: Configuration, data: ImageData, device: torch.device) -> None:
        self.configuration = configuration
        """The configuration whose weights are evaluated."""
        self._data = data
        self._device = device
        self._normalizer = Normalizer(data.mean, data.std, device)
        self._model: nn.Module | None = None
        self.metric = DecidingMetric.of(configuration.metric)
        """The metric by which state dicts are compared."""
        self.num_passes = 0
        """Number of evaluations so far, each of which is a forward pass of the validation part."""

    def __call__(self, weights: StateDict) -> Evaluated:
        if self._model is None:
            configuration = self.configuration
            self._model = build_model(
                configuration.topology, self._data.task, seed=configuration.seed, device=self._device
            )
        self._model.load_state_dict(dict(weights))
        self.num_passes += 1
        metric = self.metric
        logits = torch.cat(list(logits_of(self._model, self._data.validation.images, self._normalizer)))
        labels = self._data.validation.labels.to(logits.device)
        found = judge(logits, labels, metric=metric.choice)
        return Evaluated(
            found.loss,
            found.accuracy,
            found.metrics,
            score=metric.score(found.metrics[metric.choice.name]),
            class_losses=class_means(logits, labels)[Signal.CLASS_VAL_LOSS],
        )
