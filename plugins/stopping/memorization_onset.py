"""ADELE's rule: stop when the training accuracy has passed its fast rise, after which noisy labels are memorised."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from plugins.protocols import SIGNAL_COSTS, CurvePoint, PluginCard, Signal
from plugins.stopping.recorded import recorded, recorded_by_class

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MIN_EPOCHS = 4
"""Number of epochs before the first fit, which has three parameters."""


class Rise(NamedTuple):
    """A fitted training accuracy: `a (1 - exp(-t^b / c))` after t epochs."""

    a: float
    b: float
    c: float

    def slowdown(self, epoch: float) -> float:
        """How much slower the accuracy rises than in the first epoch: `|f'(t) - f'(1)| / f'(1)`."""
        share = math.pow(epoch, self.b - 1) * math.exp((1 - math.pow(epoch, self.b)) / self.c)
        return abs(share - 1)


@lru_cache(maxsize=8192)
def fit_rise(accuracies: tuple[float, ...]) -> Rise | None:
    """Fit a training accuracy, with more weight on later epochs.

    Args:
        accuracies: The accuracies after epoch 1, 2 and so on; at least 3.

    Returns:
        The curve with `a` and `b` in [0, 1] and `c > 0`; `None` if the fit does not converge, or if all are 0.

    Source: Liu et al. 2022, ADELE, arXiv:2110.03740, section 3.1; bounds, start and weights as in the authors' code,
    which fits the IoU of segmentation from x = 0 on.
    """
    import numpy as np
    from scipy.optimize import curve_fit

    if max(accuracies) <= 0:
        return None

    def rise(t: "Floats", a: float, b: float, c: float) -> "Floats":
        accuracy: Floats = a * (1 - np.exp(-(t**b) / c))
        return accuracy

    def slopes(t: "Floats", a: float, b: float, c: float) -> "Floats":
        power = t**b
        left = np.exp(-power / c)
        change = a * left * power / c
        return np.column_stack([1 - left, change * np.log(t), -change / c])

    epochs = np.arange(1, len(accuracies) + 1, dtype=float)
    try:
        found, _ = curve_fit(
            rise,
            epochs,
            np.asarray(accuracies),
            p0=(1, 1, 1),
            sigma=np.geomspace(1, 0.1, len(accuracies)),
            bounds=([0, 0, 0], [1, 1, np.inf]),
            jac=slopes,
        )
    except RuntimeError:  # no convergence
        return None
    a, b, c = map(float, found)
    return Rise(a, b, c) if c > 0 else None


@dataclass(frozen=True, kw_only=True)
class MemorizationOnset:
    """Stops if enough classes have begun to be memorised; `fit_rise` does the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Liu et al. 2022, ADELE, arXiv:2110.03740, for classification: the training accuracy of each class takes "
            "the place of its IoU, and training stops where the authors begin to correct labels"
        ),
        cost=f"{SIGNAL_COSTS[Signal.CLASS_TRAINING_ACCURACY]}; a fit of a few milliseconds per class",
        needs=(Signal.CLASS_TRAINING_ACCURACY.value,),
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """How much slower than in the first epoch the accuracy of a class must rise, as a fraction."""
    per_class: bool = True
    """Whether each class has its own onset; otherwise the training accuracy of all images is fitted."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of the classes that must have passed their onset."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The training accuracy, of each class or of all images."""
        return frozenset({Signal.CLASS_TRAINING_ACCURACY if self.per_class else Signal.TRAINING_ACCURACY})

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return MIN_EPOCHS

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The signal was not measured.
        """
        name = "memorization-onset"
        if self.per_class:
            rises = list(recorded_by_class(curve, Signal.CLASS_TRAINING_ACCURACY, criterion=name).values())
        else:
            rises = [[value for _, value in recorded(curve, Signal.TRAINING_ACCURACY, criterion=name)]]
        if len(curve) < MIN_EPOCHS or not rises:
            return None
        count = sum(self._is_past_onset(values) for values in rises)
        if count < self.share * len(rises):
            return None
        words = f"that of {count} of the {len(rises)} classes" if self.per_class else "it"
        return (
            f"the training accuracy has passed its fast rise, after which noisy labels are memorised: in epoch "
            f"{curve[-1].epoch}, {words} rises more than {100 * self.threshold:g} % slower than in the first epoch"
        )

    def _is_past_onset(self, accuracies: Sequence[float]) -> bool:
        rise = fit_rise(tuple(accuracies))
        return rise is not None and rise.slowdown(len(accuracies)) > self.threshold
