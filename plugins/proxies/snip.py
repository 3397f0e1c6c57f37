"""SNIP: how sensitive the loss is to the removal of each weight."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Snip(PassProxy):
    """Sum of `|w dL/dw|` over the weights of the linear and convolution layers used in the forward pass.

    `L` is the mean cross-entropy of the batch. Biases, norms and position embeddings are excluded, as for CNNs.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Lee et al. 2019 (SNIP), arXiv:1810.02340; as a score: Abdelfattah et al. 2021, arXiv:2101.08134; "
        "includes linear layers as well as convolutions",
        cost="per repeat, one forward and backward pass of the batch, shared with other proxies",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from plugins.proxies.passes import sum_of

        layers, gradients = recorded.layers, recorded.mean_gradients
        return sum_of((layers[name].get_parameter("weight").detach() * gradients[name]).abs().sum() for name in layers)
