"""Multiply-accumulates of one image: the second baseline."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Multiply-accumulates in closed form, attention products counted, norms and activations not; nothing is built."""

    card: ClassVar[PluginCard] = PluginCard(
        source="baseline; counts multiply-accumulates, half of the floating-point operations",
        cost="arithmetic only",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def score(self, candidate: Candidate) -> ProxyScore:
        return ProxyScore(float(candidate.costs.macs))
