"""Gradient norm: the size of the loss gradients of an untrained network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class GradNorm(PassProxy):
    """Sum of `||dL/dW||_2` over the linear and convolution layers used in the forward pass.

    `L` is the mean cross-entropy of the batch.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Abdelfattah et al. 2021, arXiv:2101.08134; includes linear layers as well as convolutions",
        cost="per repeat, one forward and backward pass of the batch, shared with other proxies",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from plugins.proxies.passes import sum_of

        return sum_of(gradient.norm() for gradient in recorded.mean_gradients.values())
