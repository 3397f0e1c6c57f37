"""Fisher: the estimated change of the loss if a channel is removed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Fisher(PassProxy):
    """Sum over the channels of all layers of `0.5 mean_n (sum_t a_nt dL/da_nt)^2`.

    `a_nt` is the output of a linear or convolution layer in this channel, before any activation function, for image `n`
    at token (or pixel) `t`. `L` is the mean cross-entropy of the batch. The sum over tokens replaces the sum over
    pixels of CNNs.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Theis et al. 2018, arXiv:1801.05787; Turner et al. 2020 (BlockSwap), arXiv:1906.04113; as a score: "
        "Abdelfattah et al. 2021, arXiv:2101.08134; tokens replace pixels",
        cost="per repeat, one forward and backward pass of the batch, shared with other proxies",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch
        from torch import Tensor, nn

        from plugins.proxies.passes import RecordedPart, sum_of

        num_images = len(recorded.candidate.images)
        gradients = dict(zip(map(id, recorded.parts), recorded.gradients, strict=True))

        def saliency(part: RecordedPart) -> Tensor:
            """Sum of the squares over images and channels, with gradients of the mean loss of this part."""
            squares = []
            for name, output in part.outputs.items():
                products = output.detach() * gradients[id(part)].outputs[name]
                if isinstance(recorded.layers[name], nn.Conv2d):
                    channels = products.flatten(2).sum(2)
                else:
                    channels = products.reshape(len(products), -1, products.shape[-1]).sum(1)
                squares.append(channels.double().square().sum())
            return torch.stack(squares).sum() * (len(part.images) / num_images) ** 2

        return 0.5 * sum_of(recorded.on_parts(saliency)) / num_images
