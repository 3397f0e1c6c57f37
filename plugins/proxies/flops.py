"""The number of multiply-accumulates for one image: the second baseline."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Multiply-accumulates in closed form, without building a network.

    Attention products are counted; norms and activation functions are not.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="baseline; counts multiply-accumulates, half of the floating-point operations",
        cost="arithmetic only",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    is_exact: ClassVar[bool] = True

    def score(self, candidate: Candidate) -> ProxyScore:
        return ProxyScore(float(candidate.costs.macs))
