"""Weight statistics per sub-module: the capacity of attention and of the MLPs, weighed against each other."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore, is_block

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class WeightStatistics:
    """`a sum_l log(1 + ||W_l||^2)` over attention's linear layers plus `1 - a` times the same over those of the MLPs.

    The norm is Frobenius'. The logarithm makes a further layer worth more than a wider one.

    Source: ours, after the abstract of a paper of 2026 that estimates the capacity of language models from statistics
    of the weights of attention and MLP apart; its formula was not available.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="ours; attention and MLP apart, as the abstract of a paper on FlexiBERT proposes, whose formula was not "
        "available; depends on sizes and initial scales only",
        cost="per repeat, one initialisation, shared with other proxies",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""
    attention: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share `a` of attention; the rest is that of the MLPs."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.repeats import networks, seed_groups, summarize

        values = []
        for seeds in seed_groups(candidate, self.repeats):
            values += [self.of_network(model) for model in networks(candidate, seeds)]
        return summarize(values)

    def of_network(self, model: "nn.Module") -> float:
        """The score of one network.

        Raises:
            ValueError: The network has no blocks.
        """
        blocks = [module for module in model.modules() if is_block(module)]
        if not blocks:
            raise ValueError(
                f"weight-statistics reads the blocks of a transformer, but {type(model).__name__} has none. Remove the "
                "proxy from the study."
            )
        attention = math.fsum(capacity(block.attn.modules()) for block in blocks)
        mlp = math.fsum(capacity(block.mlp.modules()) for block in blocks)
        return self.attention * attention + (1 - self.attention) * mlp


def capacity(modules: "Iterable[nn.Module]") -> float:
    """`sum_l log(1 + ||W_l||^2)` over the linear layers among the modules."""
    from torch import nn

    layers = [module for module in modules if isinstance(module, nn.Linear)]
    return math.fsum(math.log1p(float(layer.weight.detach().double().square().sum())) for layer in layers)
