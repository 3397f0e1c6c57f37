"""Cosine decay of the learning rate to a floor."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Cosine decay without restarts.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5 with one period.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Loshchilov and Hutter 2017, arXiv:1608.03983; one period, no restarts", cost="nothing"
    )
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate at the end."""

    def factor(self, progress: float) -> float:
        """`floor + (1 - floor) (1 + cos(pi * progress)) / 2`."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
