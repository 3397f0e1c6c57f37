"""Effective rank: how many directions the residual stream of an untrained network really uses."""

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class EffectiveRank(PassProxy):
    """Mean over the blocks of `exp(H(p))`, with `p` the normalised eigenvalues of the covariance of the block's output.

    The covariance is taken over the tokens of all images, `H(p) = -sum p log p`. Unlike `az-expressivity`, which sums
    logarithms over all blocks, the mean does not grow with depth. It is at most the width.

    Source: Roy & Vetterli 2007, effective rank; as a score for fresh networks, ours.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Roy & Vetterli 2007 (effective rank), EUSIPCO; applied to the blocks of a fresh network",
        cost="per repeat, one shared forward pass of the batch, and eigenvalues of one covariance matrix per block",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from plugins.proxies.block_features import map_blocks

        return statistics.fmean(map_blocks(recorded, lambda block: block.stream[2], feature_rank))


def feature_rank(features: "Tensor") -> float:
    """Effective rank of the covariance of features (B, N, D) over all tokens; nan if they are constant."""
    from plugins.proxies.spectra import covariance_eigenvalues, spectral_entropy

    return float(spectral_entropy(covariance_eigenvalues(features.flatten(0, 1))).exp())
