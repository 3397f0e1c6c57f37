"""Prechelt's PQ: stop if the validation loss rises while the training loss hardly falls any more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard
from plugins.stopping.generalization_loss import generalization_loss


def training_progress(losses: Sequence[float]) -> float:
    """How much the mean training loss of a strip exceeds its minimum, per mille: `1000 (mean / min - 1)`.

    Args:
        losses: The training losses of a strip of epochs, at least one; none is negative.

    Source: Prechelt 1998, "Early stopping - but when?", P_k(t).
    """
    lowest, mean = min(losses), fmean(losses)
    if lowest > 0:
        return max(0.0, 1000 * (mean / lowest - 1))
    return math.inf if mean > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ProgressQuotient:
    """PQ_alpha as a plug-in; `generalization_loss` and `training_progress` do the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source='Prechelt 1998, "Early stopping - but when?", class PQ, with strips of 5 epochs',
        cost="nothing",
        needs=("validation loss", "training loss"),
    )
    threshold: Annotated[float, Field(gt=0)] = 1.0
    """The alpha of PQ_alpha: percent of generalization loss per mille of training progress. Prechelt tried 0.5 to 3."""
    strip: Annotated[int, Field(ge=2)] = 5
    """Number of epochs in a strip. The criterion is checked at the end of each strip."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.strip

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`."""
        if not curve or len(curve) % self.strip:
            return None
        loss = generalization_loss([point.val_loss for point in curve])
        progress = training_progress([point.train_loss for point in curve[-self.strip :]])
        if loss <= self.threshold * progress:
            return None
        return (
            f"the validation loss {curve[-1].val_loss:.4g} of epoch {curve[-1].epoch} is {loss:.3g} % above its "
            f"minimum, while the training loss of the last {self.strip} epochs was {progress:.3g} per mille above its "
            f"own; the limit of their quotient is {self.threshold:g}"
        )
