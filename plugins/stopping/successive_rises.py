"""Prechelt's UP: stop if the validation loss has risen in several successive strips of epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard


def count_rises(losses: Sequence[float], *, strip: int) -> int:
    """Number of most recent successive strips in which the loss rose, comparing the ends of strips.

    Args:
        losses: Validation loss of every epoch, oldest first. Epochs after the last whole strip are ignored.
        strip: Number of epochs in a strip.

    Source: Prechelt 1998, "Early stopping - but when?", UP_s.
    """
    ends = losses[strip - 1 :: strip]
    rises = 0
    for before, after in zip(reversed(ends[:-1]), reversed(ends[1:]), strict=True):
        if after <= before:
            break
        rises += 1
    return rises


@dataclass(frozen=True, kw_only=True)
class SuccessiveRises:
    """UP_s as a plug-in; `count_rises` does the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source='Prechelt 1998, "Early stopping - but when?", class UP, with strips of 5 epochs',
        cost="nothing",
        needs=("validation loss",),
    )
    strip: Annotated[int, Field(ge=1)] = 1
    """Number of epochs in a strip. The criterion is checked at the end of each strip."""
    rises: Annotated[int, Field(ge=1)] = 3
    """The s of UP_s."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.strip * (self.rises + 1)

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`."""
        if not curve or len(curve) % self.strip:
            return None
        rises = count_rises([point.val_loss for point in curve], strip=self.strip)
        if rises < self.rises:
            return None
        length = "1 epoch" if self.strip == 1 else f"{self.strip} epochs"
        return (
            f"the validation loss rose in {rises} successive strips of {length}, to {curve[-1].val_loss:.4g}; "
            f"the limit is {self.rises}"
        )
