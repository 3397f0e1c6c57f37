"""Condition number of the neural tangent kernel: how uneven the learning speeds of an untrained network are."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class NtkCondition:
    """As-ViT's trainability, computed by `plugins.proxies.tangent_kernel`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Chen et al. 2022 (As-ViT), arXiv:2202.11921; gradients of the summed features, not of the logits",
        cost="per repeat, one initialisation, one forward and one backward pass of the batch",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    repeats: Annotated[int, Field(ge=1)] = 5
    """Number of fresh initialisations to average over."""

    def score(self, candidate: Candidate) -> ProxyScore:
        import torch

        from plugins.proxies.repeats import seed_groups, summarize
        from plugins.proxies.tangent_kernel import condition_number, kernels_of_seeds

        values = []
        for seeds in seed_groups(candidate, self.repeats):
            # One transfer from a device for all networks.
            values += [condition_number(kernel) for kernel in torch.stack(kernels_of_seeds(candidate, seeds)).cpu()]
        return summarize(values)
