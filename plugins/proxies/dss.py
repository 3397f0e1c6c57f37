"""DSS: synaptic diversity of attention and synaptic saliency of everything else."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore

if TYPE_CHECKING:
    from plugins.proxies.positive_pass import PositivePass


@dataclass(frozen=True, kw_only=True)
class Dss:
    """`log` of `||dR/dW||_nuc ||W||_nuc` over attention's linear layers plus `sum |W * dR/dW|` over the other layers.

    As in `synflow`, parameters are replaced with their absolute values, the image consists of ones, and `R` is the sum
    of the logits. The logarithm does not change the order. The other layers are those of the MLPs, of patch embedding,
    merging and pooling, and the head.

    In addition to queries, keys and values, both published codes count every linear layer with as many outputs as
    inputs as part of attention. In PiT, these include some layers that pool the class token. `square_layers: false`
    leaves them out, which makes another score: on PiT, its tau to the authors' form is 0.57.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhou et al. 2022 (TF-TAS), arXiv:2203.12217; logarithm of the sum; includes the patch embedding, "
        "which the authors' code omits",
        cost="per repeat, one forward and backward pass of one image in float64, shared with `synflow`, and two "
        "eigenvalue problems per linear layer of attention",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""
    square_layers: bool = True
    """Whether all linear layers with as many outputs as inputs count as attention layers, as in the published codes."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.positive_pass import score_positive

        return score_positive(self, candidate)

    def measure_positive(self, positive: "PositivePass") -> float:
        """The score of one network."""
        from plugins.proxies.positive_pass import log_diversity_and_saliency

        return log_diversity_and_saliency(positive, square_layers=self.square_layers)
