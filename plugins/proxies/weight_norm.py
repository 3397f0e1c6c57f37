"""Weight norm: the norm of a fresh network's weights, a baseline close to the number of parameters."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class WeightNorm:
    """Sum of `||W||_2` over the weights of all linear and convolution layers."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Abdelfattah et al. 2021, arXiv:2101.08134 (l2_norm); a baseline that depends on sizes and initial "
        "scales only",
        cost="per repeat, one initialisation, shared with other proxies",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from torch import nn

        from plugins.proxies.repeats import networks, seed_groups, summarize

        values = []
        for seeds in seed_groups(candidate, self.repeats):
            for model in networks(candidate, seeds):
                weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
                values.append(sum(float(weight.detach().norm()) for weight in weights))
        return summarize(values)
