"""The neural tangent kernel of an untrained network: the Gram matrix of its per-image gradients.

Legend: `B` images, `N` positions at which a layer is applied to one image, `I` and `O` inputs and outputs of a layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from plugins.proxies.input_circle import FeatureModule


def tangent_kernel(model: nn.Module, images: Tensor) -> Tensor:
    """Inner products of images' gradients: of the summed features, by every parameter whose name contains `weight`.

    Models made of linear layers, layer norms and plain convolutions, each called once and as a module, need one forward
    and one backward pass of the batch; others go the general way of one gradient per image.

    Args:
        model: Has `forward_features`, (B, C, H, W) to (B, D); parameters that it does not use (the head) count nothing.
        images: Shape (B, C, H, W).

    Returns:
        Shape (B, B), float64.
    """
    layers = _plain_layers(model)
    kernel = None if layers is None else _layerwise_kernel(model, layers, images)
    return per_image_kernel(model, images) if kernel is None else kernel


def per_image_kernel(model: nn.Module, images: Tensor) -> Tensor:
    """`tangent_kernel` of any model, holding every image's gradient at once."""
    module = FeatureModule(model)
    weights = {name: value.detach() for name, value in module.named_parameters() if "weight" in name}

    def summed_features(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        features: Tensor = functional_call(module, weights, (image[None],))
        return features.sum()

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        gradients = vmap(grad(summed_features), in_dims=(None, 0))(weights, images)
    kernel = images.new_zeros(len(images), len(images), dtype=torch.float64)
    for gradient in gradients.values():
        kernel += gradient.flatten(1) @ gradient.flatten(1).T
    return kernel


def condition_number(kernel: Tensor) -> float:
    """Largest over smallest eigenvalue of a symmetric matrix, in float64; nan for a matrix that is not finite."""
    if not bool(torch.isfinite(kernel).all()):
        return float("nan")
    eigenvalues = torch.linalg.eigvalsh(kernel.double().cpu())
    return float(eigenvalues[-1] / eigenvalues[0])


def _plain_layers(model: nn.Module) -> list[nn.Module] | None:
    """The modules that own the weights, or `None` if one of them is of a kind that the layer-wise way does not know."""
    owners = []
    for name, _ in model.named_parameters():
        if "weight" not in name:
            continue
        path, _, own_name = name.rpartition(".")
        owner = model.get_submodule(path)
        plain_convolution = (
            isinstance(owner, nn.Conv2d)
            and owner.groups == 1
            and owner.padding_mode == "zeros"
            and isinstance(owner.padding, tuple)
        )
        if own_name != "weight" or not (plain_convolution or isinstance(owner, nn.Linear | nn.LayerNorm)):
            return None
        owners.append(owner)
    return owners


def _layerwise_kernel(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> Tensor | None:
    """The kernel from each layer's inputs and output gradients; `None` if a weight acts beyond one call of it."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls.append((module, args[0].detach(), output))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        features: Tensor = model.forward_features(images)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    called = {layer for layer, _, _ in calls}
    not_called = [weight for layer in layers if layer not in called for weight in layer.parameters(recurse=False)]
    outputs = [output for _, _, output in calls]
    gradients = torch.autograd.grad(features.sum(), [*outputs, *not_called], allow_unused=True)
    if len(called) < len(calls) or any(gradient is not None for gradient in gradients[len(calls) :]):
        return None
    kernel = images.new_zeros(len(images), len(images), dtype=torch.float64)
    for (layer, inputs, _), gradient in zip(calls, gradients, strict=False):
        if gradient is not None:
            kernel += _layer_kernel(layer, inputs, gradient)
    return kernel


def _layer_kernel(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Tensor:
    """The part of one layer's weight, from its inputs and the gradient of its outputs."""
    if isinstance(layer, nn.LayerNorm):
        normalized = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        per_image = (normalized * gradient).reshape(len(inputs), -1, layer.weight.numel()).sum(1)
        return per_image @ per_image.T
    if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, tuple):
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return _linear_kernel(patches.transpose(1, 2), gradient.flatten(2).transpose(1, 2))
    batch = len(inputs)
    return _linear_kernel(inputs.reshape(batch, -1, inputs.shape[-1]), gradient.reshape(batch, -1, gradient.shape[-1]))


def _linear_kernel(inputs: Tensor, gradient: Tensor) -> Tensor:
    """Gram matrix of the weight gradients `G_b = gradient_b^T inputs_b`, of inputs (B, N, I) and gradients (B, N, O).

    `<G_b, G_c> = sum_nm (inputs_bn . inputs_cm) (gradient_bn . gradient_cm)` needs no `G`: cheaper for few positions.
    """
    batch, positions, num_inputs = inputs.shape
    num_outputs = gradient.shape[-1]
    if batch * positions**2 * (num_inputs + num_outputs) <= (batch + positions) * num_inputs * num_outputs:
        rows, errors = inputs.flatten(0, 1), gradient.flatten(0, 1)
        products = (rows @ rows.T) * (errors @ errors.T)
        return products.view(batch, positions, batch, positions).sum((1, 3))
    per_image = (gradient.transpose(1, 2) @ inputs).flatten(1)
    return per_image @ per_image.T
