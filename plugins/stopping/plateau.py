"""Stop if a loss, a metric or a signal has not improved for some epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import CLASS_SIGNALS, CURVE_FIELDS, CURVE_METRICS, CurvePoint, PluginCard, Signal
from plugins.registry import nearest_name
from plugins.stopping.recorded import recorded

_SIGNALS = tuple(signal.value for signal in Signal if signal not in CLASS_SIGNALS)
_SCORE = "metric"
_RISING = ("val_accuracy", *CURVE_METRICS, _SCORE, Signal.TRAINING_ACCURACY.value)
"""Numbers of which more is better."""
_WORDS = {
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced validation accuracy",
    "val_macro_f1": "macro F1 on the validation part",
    _SCORE: "study's metric",
}


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Stops after `patience` consecutive epochs in which a number has not improved by more than `min_delta`.

    With `signal: val_loss` and the defaults, it is equivalent to the criterion `patience`.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; like Keras' EarlyStopping and torch's ReduceLROnPlateau, for any recorded number",
        cost="the measurement of the signal",
    )
    signal: str = "val_loss"
    """`metric` (the one by which the study decides), `val_loss`, `val_accuracy`, `val_balanced_accuracy`,
    `val_macro_f1`, `train_loss`, or a signal such as `gradient_noise`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether lower (`min`) or higher (`max`) is better; `auto` knows it for `metric`, the validation metrics and
    `training_accuracy`, and is `min` for other signals."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Epochs without improvement before training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Minimum change from the best value so far that counts as an improvement. An equal value never counts."""
    relative: bool = False
    """Whether `min_delta` is a fraction of the best value so far."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Number of initial epochs to ignore."""

    def __post_init__(self) -> None:
        names = (*CURVE_FIELDS, *CURVE_METRICS, _SCORE, *_SIGNALS)
        if self.signal not in names:
            nearest = nearest_name(self.signal, names)
            hint = f"Did you mean {nearest!r}?" if nearest else "Choose one of these."
            raise ValueError(f"`signal` must be one of {', '.join(names)}, but got {self.signal!r}. {hint}")

    @property
    def signals(self) -> frozenset[Signal]:
        """The signal to measure; empty if every curve contains it."""
        return frozenset({Signal(self.signal)}) if self.signal in _SIGNALS else frozenset()

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.warmup_epochs + self.patience + 1

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The signal or metric was not measured.
        """
        seen = [(epoch, value) for epoch, value in self._values(curve) if epoch > self.warmup_epochs]
        if not seen:
            return None
        (best_epoch, best), waited = seen[0], 0
        for epoch, value in seen[1:]:
            if self._improves(value, best):
                best_epoch, best, waited = epoch, value, 0
            else:
                waited += 1
        if waited < self.patience:
            return None
        words = _WORDS.get(self.signal, self.signal.replace("_", " "))
        moved = "risen" if self._is_higher_better else "fallen"
        side = "above" if self._is_higher_better else "below"
        delta = f"{100 * self.min_delta:g} %" if self.relative else f"{self.min_delta:g}"
        least = f" more than {delta}" if self.min_delta else ""
        return (
            f"the {words} has not {moved}{least} {side} {best:.4g} (epoch {best_epoch}) for {waited} epochs; "
            f"patience is {self.patience}"
        )

    @property
    def _is_higher_better(self) -> bool:
        return self.mode == "max" or (self.mode == "auto" and self.signal in _RISING)

    def _improves(self, value: float, best: float) -> bool:
        if not math.isfinite(value) or not math.isfinite(best):
            return math.isfinite(value)
        gain = value - best if self._is_higher_better else best - value
        return gain > self.min_delta * (abs(best) if self.relative else 1.0)

    def _values(self, curve: Sequence[CurvePoint]) -> list[tuple[int, float]]:
        """Epochs and values. Epochs in which a signal was undefined are left out."""
        if self.signal in _SIGNALS:
            return recorded(curve, Signal(self.signal), criterion="plateau")
        return [(point.epoch, self._value(point)) for point in curve]

    def _value(self, point: CurvePoint) -> float:
        if self.signal in CURVE_FIELDS:
            value: float = getattr(point, self.signal)
            return value
        if self.signal == _SCORE:
            return point.deciding
        if self.signal not in point.metrics:
            raise ValueError(
                f"stopping plateau: each epoch of the curve must contain the metric {self.signal}, but epoch "
                f"{point.epoch} contains {', '.join(point.metrics) or 'no metrics'}. Metrics cannot be added to a "
                "recorded curve: choose another one, or train again."
            )
        return point.metrics[self.signal]
