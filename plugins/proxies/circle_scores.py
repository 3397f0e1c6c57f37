"""Scores of the curves that fresh networks make of circles, with as little computing as their values allow.

Legend: `n` points on the circle, `D` features, `M` harmonics, images of (C, H, W).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plugins.protocols import Candidate, CurveModel, ProxyScore
from plugins.proxies.input_circle import circle_angles, circle_basis, circle_weights, curve_derivatives
from plugins.proxies.repeats import networks, on_all_cores, seed_groups, summarize

HARMONICS = 2
"""A curve is first taken for a trigonometric polynomial of this degree."""


def score_circles(
    candidate: Candidate, measure: Callable[..., Tensor], *, order: int, repeats: int, num_points: int
) -> ProxyScore:
    """A measure of the curves of `repeats` fresh networks without normalisation, each on a circle of its own.

    Args:
        candidate: What to score.
        measure: From the first `order` derivatives by the angle, each (n, D), to a scalar.
        order: 1 or 2.
        repeats: Number of networks.
        num_points: Angles per circle, `n`. The last is the first again, and computed once.
    """
    images, angles = candidate.images, circle_angles(num_points, like=candidate.images)[:-1]

    def basis_of(seed: int) -> Tensor:
        return circle_basis(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)

    values = []
    for seeds in seed_groups(candidate, repeats):
        models, bases = networks(candidate, seeds), list(on_all_cores(basis_of, seeds, device=images.device.type))
        if all(isinstance(model, CurveModel) for model in models):
            curves = curves_of_models(models, bases, angles, order=order)
        else:
            plain = (candidate.build(seed=seed, normalization=False) for seed in seeds)
            curves = curves_by_autograd(plain, bases, angles, order=order)
        values += [float(measure(*torch.cat([curve, curve[:, :1]], 1))) for curve in curves]
    return summarize(values)


def curves_by_autograd(
    models: Iterator[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int
) -> Iterator[Tensor]:
    """Derivatives of any model's features on the circle of its basis (2, C, H, W), each (order, n, D)."""
    for model, basis in zip(models, bases, strict=True):
        yield curve_derivatives(model.forward_features, angles, basis, order=order)[1:]


def curves_of_models(models: Sequence[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int) -> Iterator[Tensor]:
    """`curves_by_autograd` for every `CurveModel`, from fewer points where they tell the rest.

    A fresh network without normalisation bends its input so little that its features on the circle are a trigonometric
    polynomial of degree 2 but for a part in 10^8. The velocity then has four unknowns per feature, and four of five
    evenly spaced points give it everywhere, with the acceleration. As the harmonics of a smooth function fall off
    geometrically, the third is about the square of the second (measured: 2 to 12 times that), relative to the first.
    Where ten times the square is not below the dtype's rounding error, as in float64, all points are computed.
    """
    few = circle_angles(2 * HARMONICS + 2, like=angles)[: 2 * HARMONICS]
    if len(angles) <= len(few) or torch.finfo(angles.dtype).eps < 1e-10:
        yield from _along_circles(models, bases, angles, order=order)
        return
    for model, basis, sample in zip(models, bases, _along_circles(models, bases, few, order=1), strict=True):
        harmonics = fit_harmonics(sample[0], few)
        first, second = harmonics.reshape(HARMONICS, -1).norm(dim=1)
        if 10 * second**2 <= torch.finfo(angles.dtype).eps * first**2:
            yield torch.stack([_waves(angles, order=index).to(harmonics) @ harmonics for index in range(order)])
        else:
            yield from _along_circles([model], [basis], angles, order=order)


def fit_harmonics(velocity: Tensor, angles: Tensor) -> Tensor:
    """Coefficients of cos, sin, cos 2, sin 2, ... in float64, (2 M, D), of velocities (2 M, D) at as many angles."""
    coefficients: Tensor = torch.linalg.solve(_waves(angles, order=0), velocity.double())
    return coefficients


def _waves(angles: Tensor, *, order: int) -> Tensor:
    """The derivative of cos, sin, cos 2, sin 2, ... at angles (n,), float64, (n, 2 M)."""
    columns = []
    for harmonic in range(1, HARMONICS + 1):
        turned = angles.double() * harmonic + order * math.pi / 2
        columns += [harmonic**order * turned.cos(), harmonic**order * turned.sin()]
    return torch.stack(columns, 1)


def _along_circles(models: Sequence[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int) -> Iterator[Tensor]:
    """Derivatives of each `CurveModel` at all angles, (order, n, D).

    Each point is an image of its own: where cores outnumber the models, they share out the points.
    """
    weights = circle_weights(angles, order=order).chunk(math.ceil(torch.get_num_threads() / len(models)), 1)
    jobs = [(model, basis, some) for model, basis in zip(models, bases, strict=True) for some in weights]

    def along(job: tuple[Any, Tensor, Tensor]) -> Tensor:
        model, basis, some = job
        derivatives: Tensor = model.features_along(basis, some)
        return derivatives[1:]

    done = on_all_cores(along, jobs, device=angles.device.type)
    for parts in zip(*[done] * len(weights), strict=True):
        yield torch.cat(parts, 1)
