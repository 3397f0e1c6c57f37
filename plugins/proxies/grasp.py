"""GraSP: the estimated change of the gradient flow if a weight is removed."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Grasp(PassProxy):
    """`-sum w (H g)` over the weights of the linear and convolution layers used in the forward pass.

    `g` is the gradient of the mean cross-entropy of the batch. `H` is the Hessian of the mean cross-entropy of a few of
    its images, since all images would cost as much as two recorded passes. Sign and direction follow the code of
    Abdelfattah et al., who found that accuracy falls with `w (H g)`. GraSP itself removes the weights with the largest
    `-w (H g)`.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Wang et al. 2020 (GraSP), arXiv:2002.07376; as a score: Abdelfattah et al. 2021, arXiv:2101.08134; "
        "Hessian of a few images, gradient of the whole batch",
        cost="per repeat, one pass shared with other proxies, and one pass of `num_images` with second derivatives",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    num_images: Annotated[int, Field(ge=1)] = 4
    """Number of images for the Hessian, spread evenly over the parts of the batch; all if the batch is smaller."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        size = math.ceil(self.num_images / len(recorded.parts))
        counts = [min(size, len(part.images)) for part in recorded.parts]
        scale = recorded.candidate.images.new_zeros(()).requires_grad_()
        _ = recorded.mean_gradients  # computed before the parts read them
        # torch's fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH), _weights_scaled(recorded.layers, scale):
            values = recorded.on_parts(lambda part: _curvature(recorded, part.images[:size], part.labels[:size], scale))
        return -sum(count * float(value) for count, value in zip(counts, values, strict=True)) / sum(counts)


def _curvature(recorded: "RecordedPass", images: "Tensor", labels: "Tensor", scale: "Tensor") -> float:
    """`w^T H g`, with `H` the Hessian of the mean loss `L` of some images and `g` the gradient of the whole batch.

    If all weights are multiplied by `1 + s`, then `dL/ds = w^T dL/dw` at `s = 0`, and the gradient of this with respect
    to the weights is `H w + dL/dw`. This needs a third fewer matrix products than `H g`, since the first derivative is
    with respect to a single number.
    """
    import torch
    import torch.nn.functional as F

    from plugins.proxies.passes import sum_of

    weights = {name: layer.get_parameter("weight") for name, layer in recorded.layers.items()}
    loss = F.cross_entropy(recorded.model(images.detach()), labels)
    (by_scale,) = torch.autograd.grad(loss, scale, create_graph=True)
    products = torch.autograd.grad(by_scale - loss, list(weights.values()), materialize_grads=True)
    return sum_of(
        (product * recorded.mean_gradients[name]).sum() for name, product in zip(weights, products, strict=True)
    )


@contextmanager
def _weights_scaled(layers: "dict[str, nn.Module]", scale: "Tensor") -> Iterator[None]:
    """In this context, the layers compute as if their weights were multiplied by `1 + scale`; `scale` is 0."""
    import torch

    def hook(layer: Any, _: tuple[Any, ...], output: "Tensor") -> "Tensor":
        if layer.bias is None:
            return torch.addcmul(output, scale, output)
        bias = layer.bias.view(-1, 1, 1) if isinstance(layer, torch.nn.Conv2d) else layer.bias
        return torch.addcmul(output, scale, output - bias)

    with ExitStack() as stack:
        for layer in layers.values():
            stack.callback(layer.register_forward_hook(hook).remove)
        yield
