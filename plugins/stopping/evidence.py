"""Mahsereci's EB: stop if the gradient is no larger than its sampling noise; needs no validation images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import SIGNAL_COSTS, CurvePoint, PluginCard, Signal
from plugins.stopping.recorded import recorded


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Stops if the evidence against further training, averaged over `window` epochs, exceeds 0."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Mahsereci et al. 2017, arXiv:1703.09580, over all parameters together; on 128 fixed training images once "
            "per epoch instead of each step's batch, and defined for plain gradient descent, whatever the optimizer"
        ),
        cost=SIGNAL_COSTS[Signal.EVIDENCE],
        needs=(Signal.EVIDENCE.value,),
    )
    window: Annotated[int, Field(ge=1)] = 3
    """Number of last epochs over which the evidence is averaged, because that of one epoch is noisy."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The evidence."""
        return frozenset({Signal.EVIDENCE})

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return max(self.window, 2)

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The signal was not measured.
        """
        values = [value for _, value in recorded(curve, Signal.EVIDENCE, criterion="evidence")][-self.window :]
        if len(values) < self.window or len(curve) < 2 or fmean(values) <= 0:
            return None
        return (
            f"the gradient of the training loss is no larger than its sampling noise explains: the evidence is "
            f"{fmean(values):.3g}, above 0, on average over {len(values)} epochs up to epoch {curve[-1].epoch}"
        )
