"""Measurement of signals: numbers that training computes once per epoch for plug-ins that read them.

Legend: `P` numbers of a row, `N` images.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from plugins.protocols import Signal, class_key
from trainers.data.images import ImageSplit
from trainers.data.label_noise import memorized_fraction
from trainers.data.mapping import batches, gather
from trainers.hardware.devices import at_least_float32
from trainers.training.batch import TrainingImages
from trainers.training.block_signals import BLOCK_SIGNALS, watched_blocks
from trainers.training.evaluation import logits_of
from trainers.training.gradient_signals import GRADIENT_SIGNALS, GradientSample
from trainers.training.row import Row
from trainers.training.signal_arithmetic import class_means, effective_rank, in_float64, neural_persistence, share

_LAST_CHANGE = "signals.last_change"
_IMAGES_FOR_RANK = 2048
_BATCH_FOR_RANK = 256

_OF_STEPS = frozenset({Signal.GRADIENT_NORM, Signal.GRADIENT_NOISE})
_OF_CHANGES = frozenset({Signal.WEIGHT_PERSISTENCE, Signal.LAYER_CHANGE})
_OF_CLASSES = frozenset({Signal.CLASS_VAL_LOSS, Signal.CLASS_VAL_ERROR})
_OF_VALIDATION = BLOCK_SIGNALS | _OF_CLASSES | {Signal.CHANGED_PREDICTIONS, Signal.LOG_Z}
_OF_TRAINING = frozenset(
    {
        Signal.CHANGED_TRAINING_PREDICTIONS,
        Signal.TRAINING_ACCURACY,
        Signal.CLASS_TRAINING_ACCURACY,
        Signal.MEMORIZED_LABELS,
    }
)


class SignalMeter:
    """Measures the wanted signals of one training, and no others. Measuring changes neither weights nor random numbers.

    `plugins.protocols.SIGNAL_COSTS` says what each signal costs. All of them are computed for the weights that are
    evaluated, except those of steps and of changes, which are about the weights in training.

    Args:
        wanted: Signals to measure.
        row: The model in training.
        validation: Validation images.
        training: Training images, and the normalizer of all images.
        seed: Seed of the training, which draws the sample of training images for signals of gradients.

    Raises:
        ValueError: The model lacks what a signal needs.
    """

    def __init__(
        self, wanted: frozenset[Signal], row: Row, validation: ImageSplit, training: TrainingImages, *, seed: int
    ) -> None:
        self.wanted = wanted
        self._row = row
        self._validation = validation
        self._training = training
        self._num_steps = 0
        self._norms = self._squares = self._mean = None if not wanted & _OF_STEPS else torch.zeros(())
        self._before: Tensor | None = None
        self._predicted: Tensor | None = None
        self._predicted_training: Tensor | None = None
        self._sample = GradientSample(row, training, seed=seed) if wanted & GRADIENT_SIGNALS else None
        if Signal.EFFECTIVE_RANK in wanted and not hasattr(row.model, "forward_features"):
            raise ValueError(
                f"the signal {Signal.EFFECTIVE_RANK.value} needs a model with `forward_features(images)` "
                f"(`plugins.protocols.ProxyModel`), but {type(row.model).__name__} has none. Do not record it."
            )

    def begin(self) -> None:
        """Record the present weights of the row as the start (or continuation) of training."""
        self._num_steps = 0
        self._norms, self._squares, self._mean = (torch.zeros_like(self._row.values[0]) for _ in range(3))
        if Signal.GRADIENT_NOISE in self.wanted:
            self._mean = torch.zeros_like(self._row.values)
        if self.wanted & _OF_CHANGES:
            self._before = self._row.trained_values().clone()
        if self.wanted & {Signal.CHANGED_PREDICTIONS, Signal.CHANGED_TRAINING_PREDICTIONS}:
            with self._row.evaluated() as model:
                if Signal.CHANGED_PREDICTIONS in self.wanted:
                    self._predicted = self._logits(model, self._validation.images).argmax(1)
                if Signal.CHANGED_TRAINING_PREDICTIONS in self.wanted:
                    self._predicted_training = self._logits(model, self._training.images).argmax(1)

    @property
    def watches_steps(self) -> bool:
        """Whether `take` must be called with each gradient."""
        return bool(self.wanted & _OF_STEPS)

    @torch.no_grad()
    def take(self, gradient: Tensor) -> None:
        """Record the gradient (P,) of a step before clipping, without waiting for the device."""
        square = torch.dot(gradient, gradient)
        assert self._norms is not None
        assert self._squares is not None
        assert self._mean is not None
        self._norms += square.sqrt()
        self._squares += square
        if Signal.GRADIENT_NOISE in self.wanted:
            if self._mean.shape != gradient.shape:  # of another network, see `trainers.training.levels`
                self._mean = torch.zeros_like(gradient)
            self._mean += gradient
        self._num_steps += 1

    def measure(self) -> dict[str, float]:
        """The signals of the current epoch by name, without those that are not defined in it."""
        found: dict[Signal, float] = {}
        by_class: dict[str, float] = {}
        if self._num_steps:
            found |= self._of_steps()
        if self.wanted & _OF_CHANGES:
            found |= self._of_changes()
        if self.wanted - _OF_STEPS - _OF_CHANGES:
            with self._row.evaluated() as model:
                found |= self._of_evaluated(model, by_class)
        named = {signal.value: found[signal] for signal in Signal if signal in found and signal in self.wanted}
        return {name: value for name, value in {**named, **by_class}.items() if math.isfinite(value)}

    def _of_steps(self) -> dict[Signal, float]:
        assert self._norms is not None
        assert self._squares is not None
        assert self._mean is not None
        found = {Signal.GRADIENT_NORM: float(self._norms) / self._num_steps}
        if Signal.GRADIENT_NOISE in self.wanted:
            mean = self._mean / self._num_steps
            of_mean = float(torch.dot(mean, mean))
            if of_mean > 0:
                found[Signal.GRADIENT_NOISE] = float(self._squares) / self._num_steps / of_mean - 1
            self._mean.zero_()
        self._norms.zero_()
        self._squares.zero_()
        self._num_steps = 0
        return found

    @torch.no_grad()
    def _of_changes(self) -> dict[Signal, float]:
        assert self._before is not None
        found: dict[Signal, float] = {}
        present = self._row.trained_values()
        change = present - self._before
        if Signal.LAYER_CHANGE in self.wanted:
            found[Signal.LAYER_CHANGE] = self._layer_change(change, self._before)
        self._before = present.clone()
        if Signal.WEIGHT_PERSISTENCE in self.wanted:
            last = self._row.recall(_LAST_CHANGE)
            self._row.remember(_LAST_CHANGE, change)
            if last is not None:
                scale = float(torch.linalg.vector_norm(change) * torch.linalg.vector_norm(last))
                found[Signal.WEIGHT_PERSISTENCE] = float(torch.dot(change, last)) / scale if scale > 0 else math.nan
        return found

    def _of_evaluated(self, model: nn.Module, by_class: dict[str, float]) -> dict[Signal, float]:
        """Signals of the weights to evaluate; values of single classes are added to `by_class`."""
        found: dict[Signal, float] = {}
        if self.wanted & _OF_VALIDATION:
            found |= self._of_validation(model, by_class)
        if self.wanted & _OF_TRAINING:
            found |= self._of_training(model, by_class)
        if Signal.EFFECTIVE_RANK in self.wanted:
            found[Signal.EFFECTIVE_RANK] = effective_rank(self._features(model))
        if Signal.NEURAL_PERSISTENCE in self.wanted:
            found[Signal.NEURAL_PERSISTENCE] = neural_persistence(self._matrices())
        if self._sample is not None:
            found |= self._sample.measure(model, self.wanted)
        return found

    def _layer_change(self, change: Tensor, before: Tensor) -> float:
        layout = self._row.layout
        changes = torch._foreach_norm(layout.views(change)[: layout.num_decayed])
        sizes = torch._foreach_norm(layout.views(before)[: layout.num_decayed])
        return float((torch.stack(changes) / torch.stack(sizes)).mean())

    def _of_validation(self, model: nn.Module, by_class: dict[str, float]) -> dict[Signal, float]:
        """Signals of the validation part; values of single classes are added to `by_class`."""
        found: dict[Signal, float] = {}
        is_watched = bool(self.wanted & BLOCK_SIGNALS)
        with watched_blocks(model, self.wanted) if is_watched else nullcontext() as watched:
            logits = self._logits(model, self._validation.images)
        if watched is not None:
            found |= watched.signals()
        if self.wanted & _OF_CLASSES:
            for signal, values in class_means(logits, self._validation.labels.to(logits.device)).items():
                if signal in self.wanted:
                    by_class |= {class_key(signal, number): value for number, value in values.items()}
        if Signal.LOG_Z in self.wanted:
            found[Signal.LOG_Z] = float(in_float64(logits.logsumexp(1)).mean())
        if Signal.CHANGED_PREDICTIONS in self.wanted:
            assert self._predicted is not None
            predicted = logits.argmax(1)
            found[Signal.CHANGED_PREDICTIONS] = share(predicted != self._predicted)
            self._predicted = predicted
        return found

    def _of_training(self, model: nn.Module, by_class: dict[str, float]) -> dict[Signal, float]:
        """Signals of the training part; values of single classes are added to `by_class`."""
        found: dict[Signal, float] = {}
        labels = self._training.labels
        predicted = self._logits(model, self._training.images).argmax(1)
        is_right = predicted == labels
        found[Signal.TRAINING_ACCURACY] = share(is_right)
        if Signal.CHANGED_TRAINING_PREDICTIONS in self.wanted:
            assert self._predicted_training is not None
            found[Signal.CHANGED_TRAINING_PREDICTIONS] = share(predicted != self._predicted_training)
            self._predicted_training = predicted
        if Signal.MEMORIZED_LABELS in self.wanted and self._training.true_labels is not None:
            memorized = memorized_fraction(predicted, labels, self._training.true_labels)
            if memorized is not None:
                found[Signal.MEMORIZED_LABELS] = memorized
        if Signal.CLASS_TRAINING_ACCURACY in self.wanted:
            sizes = torch.bincount(labels, minlength=self._training.num_classes).tolist()
            right = torch.bincount(labels[is_right], minlength=self._training.num_classes).tolist()
            for number, (size, count) in enumerate(zip(sizes, right, strict=True)):
                if size:
                    by_class[class_key(Signal.CLASS_TRAINING_ACCURACY, number)] = count / size
        return found

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (N, classes) of uint8 images."""
        return torch.cat(list(logits_of(model, images, self._training.normalizer)))

    def _features(self, model: nn.Module) -> Tensor:
        """Features (N, D) of evenly spaced validation images."""
        model.eval()
        images = self._validation.images
        count = min(_IMAGES_FOR_RANK, len(images))
        chosen = gather(images, torch.arange(count) * len(images) // count)
        found = []
        for batch in batches(chosen, _BATCH_FOR_RANK):
            with torch.inference_mode():
                pixels = self._training.normalizer(batch.to(self._row.values.device))
                found.append(at_least_float32(model.forward_features(pixels)))  # type: ignore[operator]
        return torch.cat(found)

    def _matrices(self) -> list[Tensor]:
        """The weights of the linear layers."""
        layout = self._row.layout
        return [view for view in layout.views(self._row.values)[: layout.num_decayed] if view.ndim == 2]
