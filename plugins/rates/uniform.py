"""The same learning rate for all parts of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from plugins.protocols import NetworkDescription, PartFactors, PluginCard


@dataclass(frozen=True, kw_only=True)
class UniformRates:
    """One learning rate."""

    card: ClassVar[PluginCard] = PluginCard(source="common practice", cost="nothing")

    def factors(self, network: NetworkDescription) -> Sequence[PartFactors]:
        """1 for every part."""
        return [PartFactors()] * len(network.parts)
