"""The number of parameters: the baseline that every other score should beat."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class Params:
    """Number of parameters in closed form, without building a network."""

    card: ClassVar[PluginCard] = PluginCard(source="baseline; larger models tend to be better", cost="arithmetic only")
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    is_exact: ClassVar[bool] = True

    def score(self, candidate: Candidate) -> ProxyScore:
        return ProxyScore(float(candidate.costs.parameters))
