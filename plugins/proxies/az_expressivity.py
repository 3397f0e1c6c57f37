"""AZ-NAS's expressivity: how evenly the residual stream uses its channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass

OFFSET = 1e-8
"""Number added to the shares in the logarithm, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class AzExpressivity(PassProxy):
    """`sum_i H(p_i)`, with `p_i` the normalised eigenvalues of the covariance of `f_i` over the tokens of all images.

    `f_1, ..., f_2L` is the residual stream after each attention and after each MLP; `H(p) = -sum p log(p + 1e-8)`. Each
    term is at most the logarithm of the width, so the sum rewards depth and width.

    Source: Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232, and the authors' code for AutoFormer.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232; real images instead of Gaussian noise",
        cost="per repeat, one shared forward pass of the batch, and eigenvalues of two covariance matrices per block",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from plugins.proxies.block_features import map_blocks
        from plugins.proxies.spectra import covariance_eigenvalues, spectral_entropy

        def entropy(stream: "Tensor") -> float:
            return float(spectral_entropy(covariance_eigenvalues(stream.flatten(0, 1)), offset=OFFSET))

        after_attention = map_blocks(recorded, lambda block: block.stream[1], entropy)
        after_mlp = map_blocks(recorded, lambda block: block.stream[2], entropy)
        return sum(after_attention) + sum(after_mlp)
