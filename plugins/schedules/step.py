"""Step decay: the learning rate is multiplied by a factor every few epochs."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class StepDecay:
    """Step decay by epochs. It does not depend on the number of epochs, so a training can be continued for more."""

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as `torch.optim.lr_scheduler.StepLR`", cost="nothing"
    )
    independent_of_length: ClassVar[bool] = True
    every: Annotated[int, Field(ge=1)] = 10
    """Number of epochs between drops, counted from the start of the training."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor of each drop."""

    def factor_after(self, epochs: float, num_epochs: int) -> float:  # noqa: ARG002 - the protocol's signature
        """`gamma` to the power of the number of drops so far."""
        return float(self.gamma ** math.floor(epochs / self.every + 1e-9))  # epochs may be rounded down
