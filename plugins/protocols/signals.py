"""Numbers that training records once per epoch."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Signal(StrEnum):
    """A number that training measures once per epoch if a plug-in needs it. It is stored with the curve."""

    GRADIENT_NORM = "gradient_norm"
    """Euclidean norm of the gradient before clipping, averaged over the steps of the epoch."""
    GRADIENT_NOISE = "gradient_noise"
    """Noise of the gradients relative to their mean: `E|g|^2 / |E g|^2 - 1` over the steps of the epoch."""
    CHANGED_PREDICTIONS = "changed_predictions"
    """Fraction of the validation images whose predicted class changed since the previous epoch."""
    WEIGHT_PERSISTENCE = "weight_persistence"
    """Cosine between the weight changes of this epoch and of the previous one."""
    ATTENTION_ENTROPY = "attention_entropy"
    """Mean entropy of the attention weights in validation, divided by its maximum, the log of the number of keys."""
    ATTENTION_LOGIT = "attention_logit"
    """Largest absolute attention logit, after scaling and before softmax, in validation."""
    DEAD_UNITS = "dead_units"
    """Fraction of the MLPs' hidden units with an activation below 0.01 for every validation image and token."""
    DORMANT_UNITS = "dormant_units"
    """Fraction of the MLPs' hidden units whose mean absolute activation in validation is at most 0.025 of their
    layer's mean."""
    LOG_Z = "log_z"
    """Mean logarithm of the softmax's normaliser, `log sum exp(logits)`, over the validation images."""
    EFFECTIVE_RANK = "effective_rank"
    """Exponential of the entropy of the singular values of the features of at most 2,048 validation images."""
    CHANGED_TRAINING_PREDICTIONS = "changed_training_predictions"
    """Fraction of the training images whose predicted class changed since the previous epoch."""
    TRAINING_ACCURACY = "training_accuracy"
    """Fraction of the training images, without augmentation, whose label is predicted."""
    CLASS_TRAINING_ACCURACY = "class_training_accuracy"
    """The training accuracy of each class: `class_training_accuracy.0` and so on, in the order of the classes."""
    MEMORIZED_LABELS = "memorized_labels"
    """Fraction of the training images with a wrong label (`data.label_noise`) that are predicted as that label."""
    CLASS_VAL_LOSS = "class_val_loss"
    """The validation loss of each class: `class_val_loss.0` and so on, in the order of the classes."""
    CLASS_VAL_ERROR = "class_val_error"
    """The share of the validation images of each class that are classified wrongly: `class_val_error.0` and so on."""
    LAYER_CHANGE = "layer_change"
    """Change of a weight matrix in the epoch relative to its norm, averaged over the matrices."""
    NEURAL_PERSISTENCE = "neural_persistence"
    """Topological complexity of the linear layers' weights, in [0, 1], averaged over the layers."""
    EVIDENCE = "evidence"
    """Evidence against further training: above 0 if the gradient of 128 training images is no larger than its
    sampling noise explains."""
    GRADIENT_DISPARITY = "gradient_disparity"
    """Mean distance between the gradients of 5 batches of at most 128 training images."""
    SHARPNESS = "sharpness"
    """Largest eigenvalue, by absolute value, of the Hessian of the loss on 128 training images."""


CLASS_SIGNALS = frozenset({Signal.CLASS_TRAINING_ACCURACY, Signal.CLASS_VAL_LOSS, Signal.CLASS_VAL_ERROR})
"""Signals with one number per class, recorded under the names of `class_key`."""

_OF_VALIDATION = "one forward pass of the validation part per epoch"
_OF_TRAINING = "one forward pass of the training part per epoch, shared by the four signals of that part"
SIGNAL_COSTS: Mapping[Signal, str] = {
    Signal.GRADIENT_NORM: "one dot product per step",
    Signal.GRADIENT_NOISE: "one dot product and one sum per step",
    Signal.CHANGED_PREDICTIONS: _OF_VALIDATION,
    Signal.WEIGHT_PERSISTENCE: "two dot products per epoch, and two copies of the weights",
    Signal.ATTENTION_ENTROPY: f"{_OF_VALIDATION}, with all attention weights computed once more",
    Signal.ATTENTION_LOGIT: f"{_OF_VALIDATION}, with all attention logits computed once more",
    Signal.DEAD_UNITS: _OF_VALIDATION,
    Signal.DORMANT_UNITS: _OF_VALIDATION,
    Signal.LOG_Z: _OF_VALIDATION,
    Signal.EFFECTIVE_RANK: "one forward pass and a singular value decomposition of at most 2,048 images per epoch",
    Signal.CHANGED_TRAINING_PREDICTIONS: _OF_TRAINING,
    Signal.TRAINING_ACCURACY: _OF_TRAINING,
    Signal.CLASS_TRAINING_ACCURACY: _OF_TRAINING,
    Signal.MEMORIZED_LABELS: _OF_TRAINING,
    Signal.CLASS_VAL_LOSS: _OF_VALIDATION,
    Signal.CLASS_VAL_ERROR: _OF_VALIDATION,
    Signal.LAYER_CHANGE: "two norms of the weights per epoch, and a copy of the weights",
    Signal.NEURAL_PERSISTENCE: "a spanning tree of each weight matrix per epoch, on the CPU: about 0.1 s per million "
    "weights",
    Signal.EVIDENCE: "128 gradients of single images per epoch: as much as training on about 300 images",
    Signal.GRADIENT_DISPARITY: "5 gradients of 128 images per epoch, held in memory at once: as much as training on "
    "about 500 images",
    Signal.SHARPNESS: "10 products of the Hessian of 128 images and a vector per epoch: as much as training on about "
    "2,200 images",
}
"""What each signal costs. Signals of the validation part share one pass, except the effective rank."""


CURVE_FIELDS = ("train_loss", "val_loss", "val_accuracy")
"""Numbers that every epoch records, as fields of `CurvePoint`."""
CURVE_METRICS = ("val_balanced_accuracy", "val_macro_f1")
"""Further numbers that every epoch records since version 0.2.0, in `CurvePoint.metrics`."""


@runtime_checkable
class NeedsSignals(Protocol):
    """An optional part of a plug-in, for plug-ins that read signals."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The signals that training must measure. They may depend on the settings of the plug-in."""
        ...


def needed_signals(plugin: object) -> frozenset[Signal]:
    """The signals that a plug-in reads, empty if it declares none."""
    return plugin.signals if isinstance(plugin, NeedsSignals) else frozenset()


def class_key(signal: Signal, number: int) -> str:
    """Name under which the value of a class is recorded, for a signal with one number per class."""
    return f"{signal.value}.{number}"


def class_values(signals: Mapping[str, float], signal: Signal) -> dict[int, float]:
    """The values of a signal with one number per class, by class. Classes without a value are left out."""
    prefix = f"{signal.value}."
    found = {name.removeprefix(prefix): value for name, value in signals.items() if name.startswith(prefix)}
    return {int(number): value for number, value in found.items() if number.isdigit()}
