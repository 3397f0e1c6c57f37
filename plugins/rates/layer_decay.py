"""Lower learning rates for earlier blocks, which keeps what pretrained weights know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import NetworkDescription, PartFactors, PluginCard


@dataclass(frozen=True, kw_only=True)
class LayerDecay:
    """Layer-wise decay of the learning rate.

    Source: Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254, for vision transformers.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254, for vision transformers. Layers "
            "between stages belong to the block after them"
        ),
        cost="two passes over the weights per step",
    )
    decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Factor from one block to the block before it. The head has the full rate, the embedding the lowest."""

    def factors(self, network: NetworkDescription) -> Sequence[PartFactors]:
        """`decay` to the power of the number of blocks, counting the head, above a part."""
        top = network.num_blocks + 1
        return [PartFactors(rate=self.decay ** (top - part.level)) for part in network.parts]
