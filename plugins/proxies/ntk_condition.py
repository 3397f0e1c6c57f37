"""Condition number of the neural tangent kernel: how evenly the untrained network could learn."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class NtkCondition:
    """As-ViT's trainability; the arithmetic is `plugins.proxies.tangent_kernel`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Chen et al. 2022 (As-ViT), arXiv:2202.11921; gradients of the summed features, not of logits",
        cost="per repeat, one initialisation, one forward and one backward pass of the batch",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    repeats: Annotated[int, Field(ge=1)] = 5

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.repeats import repeat_seeds, summarize
        from plugins.proxies.tangent_kernel import condition_number, tangent_kernel

        return summarize(
            [
                condition_number(tangent_kernel(candidate.build(seed=seed, normalization=True), candidate.images))
                for seed in repeat_seeds(candidate.seed, self.repeats)
            ]
        )
