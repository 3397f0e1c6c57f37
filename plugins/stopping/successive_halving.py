"""Successive halving: at a few epochs, stop unless the training is among the best of the study so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard
from plugins.stopping.earlier import score_shown, scores_at


def halving_rungs(first: int, factor: float, *, until: int) -> list[int]:
    """Epochs `first * factor^k` up to `until`, rounded up."""
    found, exact = [], float(first)
    while exact <= until:
        found.append(math.ceil(exact))
        exact *= factor
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving:
    """Stops at a rung unless the metric is among the best `1 / reduction_factor` of the trials that reached it."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Li et al. 2020, ASHA, arXiv:1810.05934, in the form that stops trials: the cutoff is the quantile "
        "`1 - 1 / reduction_factor` of the earlier trials, as in Ray Tune's scheduler",
        cost="nothing",
        needs=("validation metric", "curves of earlier trials"),
    )
    reads_earlier_curves: ClassVar[bool] = True
    first_epochs: Annotated[int, Field(ge=1)] = 1
    """Epoch of the first rung; each further one is at `reduction_factor` times as many epochs."""
    reduction_factor: Annotated[float, Field(ge=1.1)] = 3.0
    """One in this many trials continues to the next rung."""
    min_trials: Annotated[int, Field(ge=1)] = 1
    """Number of earlier trials that must have reached a rung before a training is stopped there."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.first_epochs

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`."""
        import numpy as np

        if not curve:
            return None
        last = curve[-1]
        if last.epoch not in halving_rungs(self.first_epochs, self.reduction_factor, until=last.epoch):
            return None
        others = scores_at(last.earlier, last.epoch)
        if len(others) < self.min_trials:
            return None
        cutoff = float(np.quantile(others, 1 - 1 / self.reduction_factor))
        if not last.deciding < cutoff:
            return None
        return (
            f"the metric is {score_shown(last.deciding)} after epoch {last.epoch}, worse than {score_shown(cutoff)}, "
            f"which the best 1 in {self.reduction_factor:g} of the earlier trials had there ({len(others)} came so far)"
        )
