"""Numbers that training records once per epoch."""

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
