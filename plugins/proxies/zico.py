"""ZiCo: how large the gradients are relative to their variation between mini-batches."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Zico(PassProxy):
    """Sum over layers of `log sum_w mean_i |g_wi| / std_i g_wi`, over the weights `w` with a varying gradient.

    `g_wi` is the gradient of the mean cross-entropy of mini-batch `i`. The mini-batches are the parts of the recorded
    pass (halves of the batch). The standard deviation has ddof 0, and is computed in float64: with two mini-batches it
    is half the difference of two gradients. Rounding in float32, as in the authors' code, changes small differences,
    and the weights with small differences have the largest ratios. The layers are the linear and convolution layers
    used in the forward pass. Layers without a varying gradient add nothing.

    Raises:
        ValueError: There is only one image.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Li et al. 2023 (ZiCo), arXiv:2301.11300; the mini-batches are halves of the batch; "
        "float64, since the score is sensitive to float32 rounding of the standard deviation",
        cost="per repeat, one forward and backward pass of the batch, shared with other proxies",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.passes import sum_of

        if len(recorded.parts) < 2:
            raise ValueError(
                "zico compares the gradients of two mini-batches and needs at least 2 images, but got "
                f"{len(recorded.candidate.images)}. Raise `batch_size`."
            )
        layers = []
        for name in recorded.layers:
            gradients = [part.weights[name].double() for part in recorded.gradients]
            mean = sum(gradients[1:], start=gradients[0]) / len(gradients)
            spread = torch.stack([(gradient - mean).square_() for gradient in gradients]).mean(0).sqrt_()
            ratios = torch.stack([gradient.abs() for gradient in gradients]).mean(0) / spread
            total = torch.where(spread > 0, ratios, 0.0).sum()
            layers.append(torch.where(total > 0, total, 1.0).log())
        return sum_of(layers)
