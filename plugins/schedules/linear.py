"""Linear decay of the learning rate to a floor."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear decay.

    Source: Defazio et al. 2023, arXiv:2310.07831 (the optimal schedule for constant gradient norms).
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Defazio et al. 2023, arXiv:2310.07831; no refinement", cost="nothing"
    )
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate at the end."""

    def factor(self, progress: float) -> float:
        """`floor + (1 - floor) (1 - progress)`."""
        return self.floor + (1 - self.floor) * (1 - progress)
