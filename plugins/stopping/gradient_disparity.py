"""Stop if the gradients of different batches have drifted apart several times; needs no validation images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import SIGNAL_COSTS, CurvePoint, PluginCard, Signal
from plugins.stopping.recorded import recorded


@dataclass(frozen=True, kw_only=True)
class GradientDisparity:
    """Stops in the epoch in which the gradient disparity increases for the `increases`-th time."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Forouzesh and Thiran 2021, arXiv:2107.06665, with 5 batches and the fifth increase; in evaluation mode on "
            "the same images in each epoch (the authors: in training mode on new ones)"
        ),
        cost=SIGNAL_COSTS[Signal.GRADIENT_DISPARITY],
        needs=(Signal.GRADIENT_DISPARITY.value,),
    )
    increases: Annotated[int, Field(ge=1)] = 5
    """Number of epochs in which the disparity exceeds that of the previous epoch. They need not be consecutive."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The gradient disparity."""
        return frozenset({Signal.GRADIENT_DISPARITY})

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.increases + 1

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The signal was not measured.
        """
        seen = recorded(curve, Signal.GRADIENT_DISPARITY, criterion="gradient-disparity")
        count = sum(after > before for (_, before), (_, after) in pairwise(seen))
        if count < self.increases:
            return None
        return (
            f"the disparity between the gradients of training batches has increased in {count} epochs, to "
            f"{seen[-1][1]:.4g} in epoch {seen[-1][0]}; the limit is {self.increases}"
        )
