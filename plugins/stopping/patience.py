"""Stop if the validation loss has not improved for some epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Stops after `epochs` consecutive epochs that do not improve the best validation loss by more than `min_delta`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as in Keras' EarlyStopping, on the validation loss",
        cost="nothing",
        needs=("validation loss",),
    )
    epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs without improvement before training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Minimum decrease below the best loss so far that counts as an improvement. An equal loss never counts."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.epochs + 1

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`."""
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
        least = f" more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"the validation loss has not fallen{least} below {best.val_loss:.4g} (epoch {best.epoch}) for {waited} "
            f"epochs; patience is {self.epochs}"
        )
