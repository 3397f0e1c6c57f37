"""MeCo: how far the channels of a layer are from linear dependence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Meco(PassProxy):
    """`sum_l (D_l / n) lambda_min(P_l)`, with the correlations `P_l` of `n` random channels of layer `l` over tokens.

    This is MeCo_opt. The matrix of all `D` channels is singular if there are no more tokens than channels, as in most
    vision transformers. Layers with at most `n` tokens have a singular matrix in any case and add nothing. Constant
    channels count as uncorrelated. The authors hook every module of a convolutional network and use one image of noise.
    We use the layers with weights (embeddings, `qkv`, `proj`, `fc1`, `fc2`), since the other modules only pass on their
    outputs, and average over the images of the batch, which reduces the variance of the score.

    Source: Jiang et al. 2023, MeCo, NeurIPS; sum and weight as in the authors' code for NAS-Bench-201.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Jiang et al. 2023 (MeCo), NeurIPS; MeCo_opt on linear and convolution layers, mean over real images",
        cost="per repeat, one forward pass of the batch, shared with other proxies",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over, each with different channels."""
    channels: Annotated[int, Field(ge=2)] = 8
    """Number of channels drawn from each layer; all channels if the layer has fewer."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch
        from torch import nn

        from plugins.proxies.block_features import is_finite
        from plugins.proxies.spectra import correlation_matrix, symmetric_eigenvalues

        if not is_finite(recorded):
            return float("nan")
        generator, total = recorded.generator(), 0.0
        for name, layer in recorded.layers.items():
            axis = 1 if isinstance(layer, nn.Conv2d) else -1
            outputs = [part.outputs[name].detach() for part in recorded.parts]
            width = outputs[0].shape[axis]
            drawn = torch.randperm(width, generator=generator)[: self.channels].to(outputs[0].device)
            rows = torch.cat([channel_rows(output, drawn, axis=axis) for output in outputs])
            if rows.shape[2] > rows.shape[1]:
                smallest = symmetric_eigenvalues(correlation_matrix(rows))[:, 0]
                total += width / len(drawn) * float(smallest.mean())
        return total


def channel_rows(output: "Tensor", channels: "Tensor", *, axis: int) -> "Tensor":
    """The selected channels of each image over its tokens, (B, n, N); `axis` is the axis of the channels."""
    chosen = output.index_select(axis, channels).movedim(axis, 1)
    return chosen.reshape(len(output), len(channels), -1)
