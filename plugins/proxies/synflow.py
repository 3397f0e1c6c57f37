"""SynFlow: how much signal flows through the weights, independent of data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore

if TYPE_CHECKING:
    from plugins.proxies.positive_pass import PositivePass


@dataclass(frozen=True, kw_only=True)
class SynFlow:
    """`log sum |w dR/dw|` with absolute parameters, an image of ones, and the sum `R` of the logits.

    The sum is over the weights of the linear and convolution layers used in the forward pass. The logarithm and float64
    keep it finite at any depth. Layer norms are kept, whereas the paper removes batch norms from its networks.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Tanaka et al. 2020, arXiv:2006.05467; as a score: Abdelfattah et al. 2021, arXiv:2101.08134; "
        "logarithm of the sum, with layer norms",
        cost="per repeat, one forward and backward pass of one image in float64, shared with `dss`",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.positive_pass import score_positive

        return score_positive(self, candidate)

    def measure_positive(self, positive: "PositivePass") -> float:
        """The score of one network."""
        from plugins.proxies.positive_pass import log_saliency

        return log_saliency(positive)
