"""The neural tangent kernel of an untrained network: the Gram matrix of its per-image gradients.

Legend: `B` images, `N` positions of an image to which a layer is applied, `I` and `O` inputs and outputs of a layer.
"""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from plugins.proxies.repeats import on_all_cores

PIXELS_AT_ONCE = 2**17
"""Maximum number of pixels per forward pass on a CPU; more do not fit in its cache."""
GRADIENT_BYTES = 2**29
"""Maximum size of the gradients of all images in memory together. Larger gradients are reduced layer by layer."""


class Contribution(NamedTuple):
    """A layer's contribution to the kernel: the factors of its weight gradients, `gradient^T inputs` per image."""

    gradient: Tensor
    """Gradient for the outputs, shape (B, N, O); if there are no `inputs`, gradient for the weight, shape (B, I O)."""
    inputs: Tensor | None = None
    """Shape (B, N, I)."""


def tangent_kernel(model: nn.Module, images: Tensor) -> Tensor:
    """Inner products of the images' gradients of the summed features, for all parameters with `weight` in their name.

    One forward and one backward pass of the batch suffice if all weights belong to linear layers, layer norms and
    zero-padded convolutions (including grouped ones) that are called once, as modules. Other models need one gradient
    per image. Parameters with other names, such as a class token or position embeddings, have no restrictions.

    Args:
        model: Model with `forward_features`, (B, C, H, W) to (B, D). Parameters that it does not use, such as the head,
            do not contribute.
        images: Images, shape (B, C, H, W).

    Returns:
        Shape (B, B), float64.
    """
    (kernel,) = tangent_kernels([model], images)
    return kernel


def tangent_kernels(models: Sequence[nn.Module], images: Tensor) -> Iterator[Tensor]:
    """`tangent_kernel` of each model. On a CPU, small groups of images are processed in parallel on all cores."""
    layers = [_plain_layers(model) for model in models]
    chunks = torch.split(images, _images_at_once(models, images))

    def work(job: tuple[nn.Module, _CallRecorder, Tensor]) -> list[Contribution] | Tensor | None:
        contributions = _contributions(*job, batch=len(images))
        try:
            return list(contributions) if len(chunks) > 1 else _sum(map(_gram_matrix, contributions))
        except NotLayerwiseError:
            return None

    with ExitStack() as stack:
        recorders = [stack.enter_context(_CallRecorder(found or [])) for found in layers]
        layerwise = [
            (model, recorder, chunk)
            for model, recorder, found in zip(models, recorders, layers, strict=True)
            if found
            for chunk in chunks
        ]
        done = on_all_cores(work, layerwise, device=images.device.type)
        for model, found in zip(models, layers, strict=True):
            parts: list[Any] = [next(done) for _ in chunks] if found else [None]
            if any(part is None for part in parts):
                yield per_image_kernel(model, images)
            elif len(chunks) == 1:
                yield parts[0]
            else:
                yield _sum(_gram_matrix(_joined(pieces)) for pieces in zip(*parts, strict=True))


def per_image_kernel(model: nn.Module, images: Tensor) -> Tensor:
    """`tangent_kernel` of any model, with the gradients of all images in memory at once."""
    module = _FeatureModule(model)
    weights = {name: value.detach() for name, value in module.named_parameters() if "weight" in name}

    def summed_features(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        features: Tensor = functional_call(module, weights, (image[None],))
        return features.sum()

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        gradients = vmap(grad(summed_features), in_dims=(None, 0))(weights, images)
    return _sum(_gram_matrix(Contribution(gradient.flatten(1))) for gradient in gradients.values())


def condition_number(kernel: Tensor) -> float:
    """Ratio of the largest to the smallest eigenvalue of a symmetric matrix, in float64; nan if it is not finite."""
    if not bool(torch.isfinite(kernel).all()):
        return float("nan")
    eigenvalues = torch.linalg.eigvalsh(kernel.double().cpu())
    return float(eigenvalues[-1] / eigenvalues[0])


class NotLayerwiseError(Exception):
    """A weight is used outside a single call of its layer."""


class _FeatureModule(nn.Module):
    """A model whose forward pass returns the pooled features, as `torch.func.functional_call` requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features


class _CallRecorder:
    """In its context, records inputs and outputs of all calls of some layers, separately for each thread."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self._calls: defaultdict[int, list[tuple[nn.Module, Tensor, Tensor]]] = defaultdict(list)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "_CallRecorder":
        self._handles = [layer.register_forward_hook(self._record) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._calls[threading.get_ident()].append((module, args[0].detach(), output))

    def take(self) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """Return and forget the calls of this thread."""
        return self._calls.pop(threading.get_ident(), [])


def _images_at_once(models: Sequence[nn.Module], images: Tensor) -> int:
    gradients = len(images) * sum(weight.numel() for weight in models[0].parameters()) * images.element_size()
    if images.device.type != "cpu" or gradients > GRADIENT_BYTES:
        return len(images)
    return max(1, PIXELS_AT_ONCE // images[0, 0].numel())


def _plain_layers(model: nn.Module) -> list[nn.Module] | None:
    """The modules that own the weights, or `None` if the layer-wise computation does not support one of them."""
    owners = []
    for name, _ in model.named_parameters():
        if "weight" not in name:
            continue
        path, _, own_name = name.rpartition(".")
        owner = model.get_submodule(path)
        plain_convolution = (
            isinstance(owner, nn.Conv2d) and owner.padding_mode == "zeros" and isinstance(owner.padding, tuple)
        )
        if own_name != "weight" or not (plain_convolution or isinstance(owner, nn.Linear | nn.LayerNorm)):
            return None
        owners.append(owner)
    return owners


def _contributions(model: nn.Module, recorder: _CallRecorder, images: Tensor, *, batch: int) -> Iterator[Contribution]:
    """The contribution of each layer to the kernel, from its inputs and the gradients for its outputs.

    Raises:
        NotLayerwiseError: A weight is used outside a single call of its layer.
    """
    features: Tensor = model.forward_features(images)  # type: ignore[operator]
    calls = recorder.take()
    called = {layer for layer, _, _ in calls}
    not_called = [
        weight for layer in recorder.layers if layer not in called for weight in layer.parameters(recurse=False)
    ]
    outputs = [output for _, _, output in calls]
    gradients = torch.autograd.grad(features.sum(), [*outputs, *not_called], allow_unused=True)
    if len(called) < len(calls) or any(gradient is not None for gradient in gradients[len(calls) :]):
        raise NotLayerwiseError
    for (layer, inputs, _), gradient in zip(calls, gradients, strict=False):
        if gradient is not None:
            yield _contribution(layer, inputs, gradient, batch)


def _contribution(layer: nn.Module, inputs: Tensor, gradient: Tensor, batch: int) -> Contribution:
    """The contribution of a layer to the kernel of `batch` images, from inputs and output gradients of some of them."""
    if isinstance(layer, nn.LayerNorm):
        normalized = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        return Contribution(normalized.mul_(gradient).reshape(len(inputs), -1, layer.weight.numel()).sum(1))
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return Contribution(_grouped_gradient(layer, inputs, gradient))
    if isinstance(layer, nn.Conv2d):
        rows, errors = _patches(layer, inputs), gradient.flatten(2).transpose(1, 2)
    else:
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        errors = gradient.reshape(len(inputs), -1, gradient.shape[-1])
    positions, num_inputs, num_outputs = rows.shape[1], rows.shape[2], errors.shape[2]
    if batch * positions**2 * (num_inputs + num_outputs) <= (batch + positions) * num_inputs * num_outputs:
        return Contribution(errors, rows)
    return Contribution(torch.bmm(errors.mT, rows).flatten(1))


def _grouped_gradient(layer: nn.Conv2d, images: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of each image for the weight of a grouped convolution, (B, I O)."""
    batch, positions, groups = len(images), gradient[0, 0].numel(), layer.groups
    rows = _patches(layer, images).view(batch, positions, groups, -1).transpose(1, 2)
    errors = gradient.reshape(batch, groups, -1, positions)
    return torch.matmul(errors, rows).flatten(1)


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """The inputs of a convolution at each position, (B, N, I), from images (B, C, H, W)."""
    assert isinstance(layer.padding, tuple)
    if layer.dilation != (1, 1):
        patches = F.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2)
    padded = F.pad(images, (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]))
    windows = padded.unfold(2, layer.kernel_size[0], layer.stride[0]).unfold(3, layer.kernel_size[1], layer.stride[1])
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _joined(pieces: Sequence[Contribution]) -> Contribution:
    """Concatenate the contributions of several parts of the batch."""
    inputs = [piece.inputs for piece in pieces if piece.inputs is not None]
    return Contribution(torch.cat([piece.gradient for piece in pieces]), torch.cat(inputs) if inputs else None)


def _gram_matrix(contribution: Contribution) -> Tensor:
    """Inner products of the images' weight gradients `G`, (B, B).

    `<G_b, G_c> = sum_nm (inputs_bn . inputs_cm) (gradient_bn . gradient_cm)` does not need `G`, which is cheaper for
    few positions.
    """
    gradient, inputs = contribution
    if inputs is None:
        return gradient @ gradient.T
    batch, positions = inputs.shape[:2]
    rows, errors = inputs.flatten(0, 1), gradient.flatten(0, 1)
    products = (rows @ rows.T) * (errors @ errors.T)
    return products.view(batch, positions, batch, positions).sum((1, 3))


def _sum(kernels: Iterable[Tensor]) -> Tensor:
    """Sum of (B, B) matrices, in float64."""
    return torch.stack([kernel.double() for kernel in kernels]).sum(0)
