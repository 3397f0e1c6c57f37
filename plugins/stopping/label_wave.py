"""Label Wave: stop when fewer and fewer predictions on the training part have changed, and then more again."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import SIGNAL_COSTS, CurvePoint, PluginCard, Signal
from plugins.stopping.recorded import recorded


def moving_averages(values: Sequence[float], *, window: int) -> list[float]:
    """Means of each `window` consecutive values, oldest first, to 12 digits, so that equal counts have equal means."""
    return [round(fmean(values[end - window : end]), 12) for end in range(window, len(values) + 1)]


def first_minimum(values: Sequence[float]) -> int | None:
    """Position of the first local minimum: the last value of a fall that is followed by a rise. Ties are no change.

    Returns:
        `None` if the values have not fallen and risen yet.
    """
    has_fallen, lowest = False, 0
    for place in range(1, len(values)):
        if values[place] < values[place - 1]:
            has_fallen, lowest = True, place
        elif has_fallen and values[place] > values[place - 1]:
            return lowest
    return None


@dataclass(frozen=True, kw_only=True)
class LabelWave:
    """Stops after the first local minimum of the moving average of changed training predictions."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Yuan et al. 2024, Label Wave, ICLR 2024; predictions of the weights after each epoch, without "
            "augmentation (the authors: those during the epoch, in training mode)"
        ),
        cost=SIGNAL_COSTS[Signal.CHANGED_TRAINING_PREDICTIONS],
        needs=(Signal.CHANGED_TRAINING_PREDICTIONS.value,),
    )
    window: Annotated[int, Field(ge=1)] = 3
    """Number of epochs in the moving average."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The changed predictions on the training part."""
        return frozenset({Signal.CHANGED_TRAINING_PREDICTIONS})

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.window + 2

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The signal was not measured.
        """
        seen = recorded(curve, Signal.CHANGED_TRAINING_PREDICTIONS, criterion="label-wave")
        averages = moving_averages([value for _, value in seen], window=self.window)
        lowest = first_minimum(averages)
        if lowest is None:
            return None
        over = f", on average over {self.window} epochs," if self.window > 1 else ""
        return (
            f"the share of training predictions that change from epoch to epoch{over} was lowest in epoch "
            f"{seen[lowest + self.window - 1][0]}, with {100 * averages[lowest]:.3g} %, and has risen since"
        )
