"""Scores of the curves to which fresh networks map circles, computed from as few points as possible.

Legend: `n` points on the circle, `D` features, `M` harmonics, images of (C, H, W).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plugins.protocols import Candidate, ProxyScore, is_curve_model
from plugins.proxies.input_circle import circle_angles, circle_basis, circle_weights, curve_derivatives
from plugins.proxies.repeats import (
    NetworkStack,
    network_stacks,
    num_cores,
    on_all_cores,
    one_core_per_operation,
    seed_groups,
    summarize,
)

FEW = tuple(fifth * 2 * math.pi / 5 for fifth in range(4))
"""Angles at which velocities determine a trigonometric polynomial of degree 2."""
MORE = (math.pi / 5, math.pi)
"""Further angles that determine degree 3. They minimise the condition number of the equations, 2.9."""


def score_circles(
    candidate: Candidate, measure: Callable[..., Tensor], *, order: int, repeats: int, num_points: int
) -> ProxyScore:
    """Score the curves of `repeats` fresh networks without normalisation, each for a different circle.

    Args:
        candidate: The topology to score.
        measure: Maps the first `order` derivatives with respect to the angle, each (..., n, D), to one number (...).
        order: Highest derivative, 1 or 2.
        repeats: Number of networks.
        num_points: Number of angles per circle, `n`. The last angle equals the first and is not computed again.
    """
    angles = circle_angles(num_points, like=candidate.images)[:-1]
    values = []
    with one_core_per_operation():
        for seeds in seed_groups(candidate, repeats):
            key = ("curves of circles", seeds, num_points, order)
            if key not in candidate.shared:
                candidate.shared[key] = list(_curves_of_seeds(candidate, seeds, angles, order=order))
            curves = torch.stack(candidate.shared[key], 1)
            values += measure(*torch.cat([curves, curves[:, :, :1]], 2)).tolist()
    return summarize(values)


def _curves_of_seeds(candidate: Candidate, seeds: Sequence[int], angles: Tensor, *, order: int) -> Iterator[Tensor]:
    """Derivatives of the features of each network along its circle, each (order, n, D)."""
    images = candidate.images
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    bases = [circle_basis(images.shape[1:], generator=generator).to(images) for generator in generators]
    stacks = network_stacks(candidate, seeds)
    if not all(is_curve_model(stack.module) for stack in stacks):
        plain = (candidate.build(seed=seed, normalization=False) for seed in seeds)
        return curves_by_autograd(plain, bases, angles, order=order)
    if len(angles) <= len(FEW):
        return _along_circles(stacks, bases, angles, order=order)
    key = ("harmonics of circles", tuple(seeds))
    if key not in candidate.shared:
        candidate.shared[key] = harmonics_of_stacks(stacks, bases, like=angles)
    return curves_of_stacks(stacks, bases, angles, order=order, harmonics=candidate.shared[key])


def curves_by_autograd(
    models: Iterator[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int
) -> Iterator[Tensor]:
    """Derivatives of any model's features along the circle of its basis (2, C, H, W), each (order, n, D)."""
    for model, basis in zip(models, bases, strict=True):
        yield curve_derivatives(model.forward_features, angles, basis, order=order)[1:]


def curves_of_models(models: Sequence[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int) -> Iterator[Tensor]:
    """`curves_of_stacks` of single models that are a `CurveModel`."""
    return curves_of_stacks([NetworkStack(model) for model in models], bases, angles, order=order)


def curves_of_stacks(
    stacks: Sequence[NetworkStack],
    bases: Sequence[Tensor],
    angles: Tensor,
    *,
    order: int,
    harmonics: Sequence[Tensor | None] | None = None,
) -> Iterator[Tensor]:
    """Like `curves_by_autograd` for models that are a `CurveModel`, from fewer points if these determine the others.

    Args:
        stacks: Networks that are a `CurveModel`.
        bases: The directions of each network's circle, (2, C, H, W).
        angles: Shape (n,).
        order: Highest derivative, 1 or 2.
        harmonics: Result of `harmonics_of_stacks`, if already computed.
    """
    if harmonics is None and len(angles) > len(FEW):
        harmonics = harmonics_of_stacks(stacks, bases, like=angles)
    if harmonics is None:
        yield from _along_circles(stacks, bases, angles, order=order)
        return
    waves = torch.stack([_waves(angles, order=index, count=3) for index in range(order)])
    all_of_them = _along_some(stacks, bases, angles, [known is None for known in harmonics], order=order)
    for known, curve in zip(harmonics, all_of_them, strict=True):
        if known is not None:
            yield torch.matmul(waves[:, :, : len(known)].to(known), known)
        else:
            assert curve is not None
            yield curve


def harmonics_of_stacks(
    stacks: Sequence[NetworkStack], bases: Sequence[Tensor], *, like: Tensor
) -> list[Tensor | None]:
    """The velocity of each network on its circle as coefficients of cos, sin, cos 2, sin 2, ..., (2 M, D), or `None`.

    A fresh network without normalisation is so close to linear that its features on the circle are nearly a
    trigonometric polynomial of low degree. The velocity has no constant part. If the degree is 2, four of five evenly
    spaced points therefore determine the velocity and the acceleration everywhere; if it is 3, two more points do.

    The harmonics of a smooth function decay geometrically. Relative to the first harmonic, the third is about the
    square of the second (measured: 0.7 to 12 times the square), and the fourth about its cube (1 to 50 times). The
    result is `None` unless ten times the square or a hundred times the cube is below the rounding error of the dtype,
    which is never the case in float64.
    """
    precision = torch.finfo(like.dtype).eps
    if precision < 1e-10:
        return [None] * len(bases)
    few = like.new_tensor(FEW)
    samples = torch.cat(list(_along_circles(stacks, bases, few, order=1)))
    harmonics = fit_harmonics(samples, few)
    norms = harmonics.reshape(len(bases), 2, -1).norm(dim=2)
    ratios = (norms[:, 1] / norms[:, 0]).tolist()
    found: list[Tensor | None] = [
        known if 10 * ratio**2 <= precision else None for known, ratio in zip(harmonics, ratios, strict=True)
    ]
    need_more = [10 * ratio**2 > precision >= 100 * ratio**3 for ratio in ratios]
    if any(need_more):
        all_of_them = like.new_tensor(FEW + MORE)
        more = _along_some(stacks, bases, like.new_tensor(MORE), need_more, order=1)
        for index, further in enumerate(more):
            if further is not None:
                found[index] = fit_harmonics(torch.cat([samples[index], further[0]]), all_of_them)
    return found


def fit_harmonics(velocity: Tensor, angles: Tensor) -> Tensor:
    """Coefficients of cos, sin, ... in float64, (..., 2 M, D), for velocities (..., 2 M, D) at 2 M angles."""
    waves = _waves(angles, order=0, count=len(angles) // 2)
    coefficients: Tensor = torch.linalg.solve(waves, velocity.double())
    return coefficients


def _waves(angles: Tensor, *, order: int, count: int) -> Tensor:
    """Derivatives of cos, sin, cos 2, sin 2, ... at angles (n,), float64, (n, 2 M), for `count` = M harmonics."""
    columns = []
    for harmonic in range(1, count + 1):
        turned = angles.double() * harmonic + order * math.pi / 2
        columns += [harmonic**order * turned.cos(), harmonic**order * turned.sin()]
    return torch.stack(columns, 1)


def _along_some(
    stacks: Sequence[NetworkStack], bases: Sequence[Tensor], angles: Tensor, needed: Sequence[bool], *, order: int
) -> Iterator[Tensor | None]:
    """Derivatives of the networks that are needed, (order, n, D), and `None` for the others.

    A stack computes all its networks if one of them is needed.
    """
    first = 0
    for stack in stacks:
        some = slice(first, first + stack.num_networks)
        first += stack.num_networks
        curves = list(_along_circles([stack], bases[some], angles, order=order)) if any(needed[some]) else []
        for index, is_needed in enumerate(needed[some]):
            yield curves[index] if is_needed else None


def _along_circles(
    stacks: Sequence[NetworkStack], bases: Sequence[Tensor], angles: Tensor, *, order: int
) -> Iterator[Tensor]:
    """Derivatives of each network at all angles, (order, n, D).

    Each point is a separate image, so if there are more cores than stacks, several cores share the points of a stack.
    """
    weights = circle_weights(angles, order=order).chunk(math.ceil(num_cores() / len(stacks)), 1)
    remaining = iter(bases)
    groups = [[next(remaining) for _ in range(stack.num_networks)] for stack in stacks]
    jobs = [(stack, group, some) for stack, group in zip(stacks, groups, strict=True) for some in weights]

    def along(job: tuple[NetworkStack, list[Tensor], Tensor]) -> Tensor:
        stack, group, some = job
        if stack.num_networks == 1:
            derivatives: Tensor = stack.module.features_along(group[0], some).unsqueeze(0)
        else:
            derivatives = stack.module.features_along(torch.stack(group), some)
        return derivatives[:, 1:]

    done = on_all_cores(along, jobs, device=angles.device.type)
    for parts in zip(*[done] * len(weights), strict=True):
        yield from torch.cat(parts, 2)
