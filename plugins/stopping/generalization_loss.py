"""Prechelt's GL: stop if the validation loss has risen too far above its minimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard


def generalization_loss(losses: Sequence[float]) -> float:
    """Increase of the last validation loss over the minimum so far, in percent: `100 (E_va / E_opt - 1)`.

    If the minimum is zero, the result is 0 if the last loss is zero too, and infinity otherwise.

    Args:
        losses: Validation losses, oldest first, at least one; none is negative.

    Source: Prechelt 1998, "Early stopping - but when?", GL(t).
    """
    lowest, last = min(losses), losses[-1]
    if lowest == last:
        return 0.0
    return 100 * (last / lowest - 1) if lowest > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class GeneralizationLoss:
    """GL_alpha as a plug-in; `generalization_loss` does the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source='Prechelt 1998, "Early stopping - but when?", class GL', cost="nothing", needs=("validation loss",)
    )
    threshold: Annotated[float, Field(gt=0)] = 2.0
    """The alpha of GL_alpha, in percent above the lowest validation loss."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return 2

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`."""
        if not curve:
            return None
        losses = [point.val_loss for point in curve]
        loss = generalization_loss(losses)
        if loss <= self.threshold:
            return None
        return (
            f"the validation loss {losses[-1]:.4g} of epoch {curve[-1].epoch} is {loss:.3g} % above its minimum "
            f"{min(losses):.4g}; the threshold is {self.threshold:g} %"
        )
