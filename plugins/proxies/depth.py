"""The number of blocks: a baseline that ignores widths."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from plugins.protocols import Candidate, PluginCard, ProxyScore, is_block
from search_spaces.base import Growable


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Number of transformer blocks in all stages, counted in a built network if the topology does not specify it."""

    card: ClassVar[PluginCard] = PluginCard(source="baseline; deeper models tend to be better", cost="arithmetic only")
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    is_exact: ClassVar[bool] = True

    def score(self, candidate: Candidate) -> ProxyScore:
        topology = candidate.topology
        if isinstance(topology, Growable):
            return ProxyScore(float(sum(topology.depths)))
        from plugins.proxies.repeats import networks, repeat_seeds

        (model,) = networks(candidate, repeat_seeds(candidate.seed, 1))
        return ProxyScore(float(sum(is_block(module) for module in model.modules())))
