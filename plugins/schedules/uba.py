"""UBA: one formula between a constant rate, a cosine and faster decays, chosen by one number."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class Uba:
    """Budget-aware decay.

    Source: Tang et al. 2025, arXiv:2505.24452: `floor + (1 - floor) 2 (1 + c) / (2 phi + (2 - phi) (1 + c))` with
    `c = cos(pi t)` at the progress `t` of a phase.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Tang et al. 2025, arXiv:2505.24452; `phi` is a setting, not derived from a condition number, and phases "
            "have equal lengths and rates"
        ),
        cost="nothing",
    )
    phi: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Speed of the decay: near 0, the rate stays high until the end; 2 is a cosine; larger values fall earlier."""
    phases: Annotated[int, Field(ge=1)] = 1
    """Number of phases of equal length. Each begins at the full rate."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate at the end of each phase."""

    def factor(self, progress: float) -> float:
        """The formula at the progress of the current phase."""
        done = progress * self.phases
        raised = 1 + math.cos(math.pi * (done - min(math.floor(done), self.phases - 1)))
        return self.floor + (1 - self.floor) * 2 * raised / (2 * self.phi + (2 - self.phi) * raised)
