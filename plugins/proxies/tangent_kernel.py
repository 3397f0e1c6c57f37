"""The neural tangent kernel of an untrained network: the Gram matrix of its per-image gradients.

Legend: `R` networks in a stack, `B` images, `N` positions of an image to which a layer is applied, `I` and `O` inputs
and outputs of a layer.
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

from plugins.protocols import Candidate
from plugins.proxies.repeats import NetworkStack, network_stacks, networks, on_all_cores

PIXELS_AT_ONCE = 2**17
"""Maximum number of pixels per forward pass on a CPU; more do not fit in its cache."""
GRADIENT_BYTES = 2**29
"""Maximum size of the gradients of all images in memory together. Larger gradients are reduced layer by layer."""


class Contribution(NamedTuple):
    """A layer's contribution to the kernel: the factors of its weight gradients, `gradient^T inputs` per image."""

    gradient: Tensor
    """Gradient for the outputs, shape (R, B, N, O); if there are no `inputs`, gradient for the weight, (R, B, I O)."""
    inputs: Tensor | None = None
    """Shape (R, B, N, I)."""


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
    try:
        (kernel,) = tangent_kernels([NetworkStack(model)], images)
    except NotLayerwiseError:
        return per_image_kernel(model, images)
    return kernel


def kernels_of_seeds(candidate: Candidate, seeds: Sequence[int]) -> list[Tensor]:
    """`tangent_kernel` of the candidate's fresh networks. On a CPU, they are computed in parallel on all cores."""
    try:
        return list(tangent_kernels(network_stacks(candidate, seeds), candidate.images))
    except NotLayerwiseError:
        return [per_image_kernel(model, candidate.images) for model in networks(candidate, seeds)]


def tangent_kernels(stacks: Sequence[NetworkStack], images: Tensor) -> Iterator[Tensor]:
    """`tangent_kernel` of each network. On a CPU, small groups of images are processed in parallel on all cores.

    Raises:
        NotLayerwiseError: A model uses a weight outside a single call of its layer. `per_image_kernel` supports it.
    """
    chunks = [torch.split(images, _images_at_once(stack, images)) for stack in stacks]

    def work(job: tuple[NetworkStack, _CallRecorder, Tensor]) -> list[Contribution]:
        return list(_contributions(*job, batch=len(images)))

    def summed(job: tuple[NetworkStack, _CallRecorder, Tensor]) -> Tensor:
        return _sum(map(_gram_matrix, _contributions(*job, batch=len(images))))

    with ExitStack() as opened:
        recorders = [opened.enter_context(_CallRecorder(_plain_layers(stack.module))) for stack in stacks]
        jobs = [
            (stack, recorder, chunk)
            for stack, recorder, some in zip(stacks, recorders, chunks, strict=True)
            for chunk in some
        ]
        if len(jobs) == len(stacks):
            for kernels in on_all_cores(summed, jobs, device=images.device.type):
                yield from kernels
            return
        done = on_all_cores(work, jobs, device=images.device.type)
        for some in chunks:
            parts = [next(done) for _ in some]
            yield from _sum(_gram_matrix(_joined(pieces)) for pieces in zip(*parts, strict=True))


def per_image_kernel(model: nn.Module, images: Tensor) -> Tensor:
    """`tangent_kernel` of any model, with the gradients of all images in memory at once."""
    module = _FeatureModule(model)
    weights = {name: value.detach() for name, value in module.named_parameters() if "weight" in name}

    def summed_features(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        features: Tensor = functional_call(module, weights, (image[None],))
        return features.sum()

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        gradients = vmap(grad(summed_features), in_dims=(None, 0))(weights, images)
    kernels = _sum(_gram_matrix(Contribution(gradient.flatten(1).unsqueeze(0))) for gradient in gradients.values())
    return kernels[0]


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


def _images_at_once(stack: NetworkStack, images: Tensor) -> int:
    gradients = len(images) * sum(weight.numel() for weight in stack.module.parameters()) * images.element_size()
    if images.device.type != "cpu" or gradients > GRADIENT_BYTES:
        return len(images)
    return max(1, PIXELS_AT_ONCE // (stack.num_networks * images[0, 0].numel()))


def _plain_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that own the weights.

    Raises:
        NotLayerwiseError: The layer-wise computation does not support one of them.
    """
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
            raise NotLayerwiseError
        owners.append(owner)
    return owners


def _contributions(
    stack: NetworkStack, recorder: _CallRecorder, images: Tensor, *, batch: int
) -> Iterator[Contribution]:
    """The contribution of each layer to the kernel, from its inputs and the gradients for its outputs.

    Raises:
        NotLayerwiseError: A weight is used outside a single call of its layer.
    """
    features: Tensor = stack.module.forward_features(images)
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
            yield _contribution(layer, inputs, gradient, stack.num_networks, batch)


def _contribution(layer: nn.Module, inputs: Tensor, gradient: Tensor, count: int, batch: int) -> Contribution:
    """The contribution of a layer to the kernels of `batch` images, from some of them.

    Args:
        layer: A linear layer, layer norm or convolution.
        inputs: Inputs of all networks, (R B, ...), or those that all networks share, (B, ...).
        gradient: Gradient for the outputs, shape (R B, ...).
        count: Number of networks `R`.
        batch: Number of images of the kernel.
    """
    if isinstance(layer, nn.LayerNorm):
        normalized = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        width = layer.weight.numel()
        return Contribution(normalized.mul_(gradient).view(count, len(inputs) // count, -1, width).sum(2))
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return Contribution(_grouped_gradient(layer, inputs, gradient).view(count, len(inputs) // count, -1))
        rows, errors = _patches(layer, inputs), gradient.flatten(2).mT
    else:
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        errors = gradient.reshape(len(gradient), -1, gradient.shape[-1])
    if len(rows) < len(errors):
        return Contribution(_gradient_of_shared(rows, errors, count))
    positions, num_inputs, num_outputs = rows.shape[1], rows.shape[2], errors.shape[2]
    if batch * positions**2 * (num_inputs + num_outputs) <= (batch + positions) * num_inputs * num_outputs:
        errors, rows = (part.reshape(count, -1, *part.shape[1:]) for part in (errors, rows))
        return Contribution(errors, rows)
    return Contribution(torch.bmm(errors.mT, rows).view(count, len(rows) // count, -1))


def _gradient_of_shared(rows: Tensor, errors: Tensor, count: int) -> Tensor:
    """Gradients (R, B, O I) of each image and network for a weight, from inputs (B, N, I) that all networks share."""
    batch, positions, num_outputs = len(rows), *errors.shape[1:]
    side_by_side = errors.view(count, batch, positions, num_outputs).permute(1, 0, 3, 2).reshape(batch, -1, positions)
    return torch.bmm(side_by_side, rows).view(batch, count, -1).transpose(0, 1)


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
    return Contribution(torch.cat([piece.gradient for piece in pieces], 1), torch.cat(inputs, 1) if inputs else None)


def _gram_matrix(contribution: Contribution) -> Tensor:
    """Inner products of the images' weight gradients `G`, (R, B, B).

    `<G_b, G_c> = sum_nm (inputs_bn . inputs_cm) (gradient_bn . gradient_cm)` does not need `G`, which is cheaper for
    few positions.
    """
    gradient, inputs = contribution
    if inputs is None:
        return torch.bmm(gradient, gradient.mT)
    count, batch, positions = inputs.shape[:3]
    rows, errors = inputs.flatten(1, 2), gradient.flatten(1, 2)
    products = torch.bmm(rows, rows.mT).mul_(torch.bmm(errors, errors.mT))
    if positions == 1:
        return products
    return products.view(count, batch, positions, batch, positions).sum((2, 4))


def _sum(kernels: Iterable[Tensor]) -> Tensor:
    """Sum of (R, B, B) matrices, in float64."""
    return torch.stack([kernel.double() for kernel in kernels]).sum(0)
