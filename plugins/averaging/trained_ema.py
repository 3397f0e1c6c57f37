"""The exponential moving average over all steps, maintained during training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.averaging.maintained import MaintainedAverage
from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class TrainedEma(MaintainedAverage):
    """The moving average saved with the newest checkpoint. The field `ema` of the recipe sets its decay."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Polyak and Juditsky 1992; over all training steps, with a warm-up of the decay",
        cost="one read of 1 checkpoint; a further copy of the weights for each decay during training, updated at every "
        "step",
        needs=("a recipe with `ema`",),
    )
    reads: ClassVar[str] = "ema"
    rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the average to take; needed if the recipe maintains several."""
