"""Stop when the validation loss has not improved for some epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Stops after `epochs` epochs in a row without a validation loss below the best by more than `min_delta`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as in Keras' EarlyStopping, on the validation loss",
        cost="nothing",
        needs=("validation loss",),
    )
    epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs without an improvement before the stop."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """How much lower than the best so far a loss must be to count; an equal loss never counts."""

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """Why to stop after the last point, or `None`."""
        if not curve:
            return None
        best, waited = curve[0], 0
        for point in curve[1:]:
            if point.val_loss < best.val_loss - self.min_delta:
                best, waited = point, 0
            else:
                waited += 1
        if waited < self.epochs:
            return None
        least = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"the validation loss has not fallen{least} below {best.val_loss:.4g} (epoch {best.epoch}) for {waited} "
            f"epochs; patience is {self.epochs}"
        )
