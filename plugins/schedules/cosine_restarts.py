"""Cosine decay with warm restarts, for averages of the weights at the end of each cycle."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class CosineRestarts:
    """Cosine cycles of whole epochs. A training can be continued for more epochs.

    Averaged with `{name: lawa, spacing: PERIOD}`, the checkpoints are those at the ends of cycles if the training ends
    with a cycle.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Loshchilov and Hutter 2017, arXiv:1608.03983, with cycles of whole epochs", cost="nothing"
    )
    independent_of_length: ClassVar[bool] = True
    period: Annotated[int, Field(ge=1)] = 4
    """Number of epochs of the first cycle, counted from the start of the training."""
    growth: Annotated[int, Field(ge=1)] = 1
    """Factor by which each cycle is longer than the one before."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate at the end of each cycle."""

    def factor_after(self, epochs: float, num_epochs: int) -> float:  # noqa: ARG002 - the protocol's signature
        """`floor + (1 - floor) (1 + cos(pi * t)) / 2` at the progress `t` of the current cycle."""
        begun, length = 0, self.period
        while epochs >= begun + length - 1e-9:  # epochs may be rounded down
            begun, length = begun + length, length * self.growth
        done = max(epochs - begun, 0.0) / length
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
