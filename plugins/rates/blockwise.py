"""Higher learning rates for the kinds of layers with flatter loss: norms the lowest, embeddings the highest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import NetworkDescription, PartFactors, PluginCard
from plugins.protocols.rates import Role

_Factor = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Blockwise:
    """Blockwise learning rates.

    Source: Wang et al. 2025, arXiv:2502.19002, with the factors of the authors' README.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Wang et al. 2025, arXiv:2502.19002; factors of https://github.com/Wongboo/BlockwiseLearningRate, made for "
            "language models. `between` and `head` are ours: such layers have the factor of an MLP. Biases have the "
            "factor of their weights"
        ),
        cost="two passes over the weights per step",
    )
    norm: _Factor = 1.0
    """Factor of norms."""
    value_output: _Factor = 4.0
    """Factor of values and of the output of attention."""
    mlp: _Factor = 6.0
    """Factor of the MLPs."""
    query_key: _Factor = 8.0
    """Factor of queries and keys."""
    embedding: _Factor = 10.0
    """Factor of the patch embedding, positions and class token."""
    between: _Factor = 6.0
    """Factor of the layers between stages."""
    head: _Factor = 6.0
    """Factor of the classifier."""

    def factors(self, network: NetworkDescription) -> Sequence[PartFactors]:
        """The factor of each part's role."""
        by_role: dict[Role, float] = {
            "norm": self.norm,
            "value-output": self.value_output,
            "mlp": self.mlp,
            "query-key": self.query_key,
            "embedding": self.embedding,
            "between": self.between,
            "head": self.head,
        }
        return [PartFactors(rate=by_role[part.role]) for part in network.parts]
