"""SWA: the mean weights of the last epochs, maintained during training."""

from dataclasses import dataclass
from typing import ClassVar

from plugins.averaging.maintained import MaintainedAverage
from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class TrainedSwa(MaintainedAverage):
    """The mean saved with the newest checkpoint. The field `swa` of the recipe sets the progress at which it starts."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Izmailov et al. 2018, arXiv:1803.05407; with the recipe's schedule, and a model of every epoch",
        cost="one read of 1 checkpoint; a second copy of the weights during training, updated once per epoch",
        needs=("a recipe with `swa`",),
    )
    reads: ClassVar[str] = "swa"
