"""NASWOT for GELU: how different the binary activation codes of the images are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Nwot(PassProxy):
    """`log |K|`: `K_ab` counts the hidden units, over all MLPs and tokens, with equal signs for images `a` and `b`.

    The sign of a unit is the sign of the input of its activation function. The paper uses every ReLU of a convolutional
    network. Auto-Prox uses every GELU and draws new weights from N(0, 1). We keep the initial weights of the network,
    so that other proxies can share the pass. The norm before the MLP makes their scale nearly irrelevant for the signs.

    Source: Mellor et al. 2021, arXiv:2006.04647; Wei et al. 2024 (Auto-Prox), arXiv:2312.09059.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Mellor et al. 2021 (NASWOT), arXiv:2006.04647; signs of GELU inputs, weights as initialised",
        cost="per repeat, one forward pass of the batch, shared with other proxies",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.block_features import is_finite, map_blocks

        if not is_finite(recorded):
            return float("nan")
        kernel = torch.stack(map_blocks(recorded, lambda block: block.hidden > 0, sign_agreements)).sum(0)
        return float(torch.linalg.slogdet(kernel)[1])


def sign_agreements(signs: "Tensor") -> "Tensor":
    """Number of units at which two images agree; maps Boolean (B, ...) to float64 (B, B).

    For codes `x` of zeros and ones, this is `x x^T + (1 - x)(1 - x)^T`. Counts in float32 are exact up to 2^24.
    """
    codes = signs.flatten(1).float()
    both = (codes @ codes.T).double()
    ones = both.diagonal()
    return codes.shape[1] - ones[:, None] - ones + 2 * both
