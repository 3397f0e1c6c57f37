"""Token diversity: how different the tokens of an image still are after each block."""

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class TokenDiversity(PassProxy):
    """Mean over blocks and images of one minus the mean cosine similarity of two different tokens of an image.

    It falls to 0 if attention makes all tokens alike, as it does exponentially with depth without MLPs and residual
    connections. Blocks with a single token are skipped.

    Source: rank collapse: Dong et al. 2021, arXiv:2103.03404; cosine similarity of tokens: Zhou et al. 2021 (DeepViT),
    arXiv:2103.11886. As a score for fresh networks, ours.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Dong et al. 2021, arXiv:2103.03404, and Zhou et al. 2021 (DeepViT), arXiv:2103.11886: measures of "
        "collapsing tokens, applied to a fresh network",
        cost="per repeat, one forward pass of the batch, shared with other proxies",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from plugins.proxies.block_features import map_blocks

        found = map_blocks(recorded, lambda block: block.stream[2], token_difference)
        values = [value for value in found if value is not None]
        return statistics.fmean(values) if values else float("nan")


def token_difference(features: "Tensor") -> float | None:
    """One minus the mean cosine similarity of different tokens of an image, from (B, N, D); `None` for one token.

    The sum over all pairs is the squared norm of the sum of the unit vectors, so no pair is formed.
    """
    import torch

    num_tokens = features.shape[1]
    if num_tokens < 2:
        return None
    units = torch.nn.functional.normalize(features.double(), dim=-1)
    pairs = units.sum(1).square().sum(-1) - num_tokens
    return 1 - float(pairs.mean()) / (num_tokens * (num_tokens - 1))
