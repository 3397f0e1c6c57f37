"""Literal implementations of As-ViT's scores, in reverse mode: the references of `benchmarks.scoring`."""

import torch
from torch import Tensor, nn

from plugins.proxies.input_circle import circle_points


def velocity_by_coordinate(model: nn.Module, angles: Tensor, basis: Tensor) -> Tensor:
    """Derivatives (n, D) of the features by the angle: one backward pass over all points per feature."""
    at = angles.clone().requires_grad_()
    features: Tensor = model.forward_features(circle_points(at, basis))  # type: ignore[operator]
    columns = [torch.autograd.grad(column.sum(), at, retain_graph=True)[0] for column in features.unbind(1)]
    return torch.stack(columns, 1)


def kernel_by_sample(model: nn.Module, images: Tensor) -> Tensor:
    """The tangent kernel as in the authors' code: one forward pass of the batch, then one backward pass per image."""
    features: Tensor = model.forward_features(images)  # type: ignore[operator]
    return _gram_matrix([_gradient(model, one, retain_graph=True) for one in features])


def kernel_by_image(model: nn.Module, images: Tensor) -> Tensor:
    """The tangent kernel with one forward and one backward pass per image: less work than the authors' code."""
    forward = model.forward_features
    return _gram_matrix([_gradient(model, forward(image[None])) for image in images])  # type: ignore[operator]


def _gradient(model: nn.Module, features: Tensor, *, retain_graph: bool = False) -> Tensor:
    weights = [weight for name, weight in model.named_parameters() if "weight" in name]
    found = torch.autograd.grad(features.sum(), weights, retain_graph=retain_graph, allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


def _gram_matrix(gradients: list[Tensor]) -> Tensor:
    rows = torch.stack(gradients)
    return (rows @ rows.T).double()
