"""The median rule: stop if the best result so far is worse than what most earlier trials had on average by then."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard
from plugins.stopping.earlier import score_shown


@dataclass(frozen=True, kw_only=True)
class Median:
    """Stops if the best metric so far is below the median of the earlier trials' means up to the same epoch."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Golovin et al. 2017, Google Vizier, section 3.2.2, the median stopping rule",
        cost="nothing",
        needs=("validation metric", "curves of earlier trials"),
    )
    reads_earlier_curves: ClassVar[bool] = True
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """Number of initial epochs in which no training is stopped."""
    min_trials: Annotated[int, Field(ge=1)] = 3
    """Number of earlier trials that must have come as far before a training is stopped."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.warmup_epochs + 1

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`."""
        if not curve:
            return None
        epoch = curve[-1].epoch
        means = [fmean(scores[:epoch]) for scores in curve[-1].earlier if len(scores) >= epoch]
        if epoch <= self.warmup_epochs or len(means) < self.min_trials:
            return None
        best, middle = max(point.deciding for point in curve), median(means)
        if not best < middle:
            return None
        return (
            f"the best metric up to epoch {epoch} is {score_shown(best)}, and half of the {len(means)} earlier trials "
            f"that came so far had {score_shown(middle)} or better on average up to there"
        )
