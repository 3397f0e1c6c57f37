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
from plugins.proxies.repeats import networks, on_all_cores, seed_groups, summarize

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
        measure: Maps the first `order` derivatives with respect to the angle, each (n, D), to a scalar.
        order: Highest derivative, 1 or 2.
        repeats: Number of networks.
        num_points: Number of angles per circle, `n`. The last angle equals the first and is not computed again.
    """
    angles = circle_angles(num_points, like=candidate.images)[:-1]
    values = []
    for seeds in seed_groups(candidate, repeats):
        key = ("curves of circles", seeds, num_points, order)
        if key not in candidate.shared:
            candidate.shared[key] = list(_curves_of_seeds(candidate, seeds, angles, order=order))
        values += [float(measure(*torch.cat([curve, curve[:, :1]], 1))) for curve in candidate.shared[key]]
    return summarize(values)


def _curves_of_seeds(candidate: Candidate, seeds: Sequence[int], angles: Tensor, *, order: int) -> Iterator[Tensor]:
    """Derivatives of the features of each network along its circle, each (order, n, D)."""
    images = candidate.images

    def basis_of(seed: int) -> Tensor:
        return circle_basis(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)

    models, bases = networks(candidate, seeds), list(on_all_cores(basis_of, seeds, device=images.device.type))
    if not all(is_curve_model(model) for model in models):
        plain = (candidate.build(seed=seed, normalization=False) for seed in seeds)
        return curves_by_autograd(plain, bases, angles, order=order)
    if len(angles) <= len(FEW):
        return _along_circles(models, bases, angles, order=order)
    key = ("harmonics of circles", tuple(seeds))
    if key not in candidate.shared:
        candidate.shared[key] = harmonics_of_models(models, bases, like=angles)
    return curves_of_models(models, bases, angles, order=order, harmonics=candidate.shared[key])


def curves_by_autograd(
    models: Iterator[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int
) -> Iterator[Tensor]:
    """Derivatives of any model's features along the circle of its basis (2, C, H, W), each (order, n, D)."""
    for model, basis in zip(models, bases, strict=True):
        yield curve_derivatives(model.forward_features, angles, basis, order=order)[1:]


def curves_of_models(
    models: Sequence[Any],
    bases: Sequence[Tensor],
    angles: Tensor,
    *,
    order: int,
    harmonics: Sequence[Tensor | None] | None = None,
) -> Iterator[Tensor]:
    """Like `curves_by_autograd` for models that are a `CurveModel`, from fewer points if these determine the others.

    Args:
        models: Models that are a `CurveModel`.
        bases: The directions of each model's circle, (2, C, H, W).
        angles: Shape (n,).
        order: Highest derivative, 1 or 2.
        harmonics: Result of `harmonics_of_models`, if already computed.
    """
    if harmonics is None and len(angles) > len(FEW):
        harmonics = harmonics_of_models(models, bases, like=angles)
    if harmonics is None:
        yield from _along_circles(models, bases, angles, order=order)
        return
    for model, basis, known in zip(models, bases, harmonics, strict=True):
        if known is None:
            yield from _along_circles([model], [basis], angles, order=order)
        else:
            waves = [_waves(angles, order=index, count=len(known) // 2) for index in range(order)]
            yield torch.stack([wave.to(known) @ known for wave in waves])


def harmonics_of_models(models: Sequence[Any], bases: Sequence[Tensor], *, like: Tensor) -> list[Tensor | None]:
    """The velocity of each model on its circle as coefficients of cos, sin, cos 2, sin 2, ..., (2 M, D), or `None`.

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
        return [None] * len(models)
    few, all_of_them = like.new_tensor(FEW), like.new_tensor(FEW + MORE)
    found: list[Tensor | None] = []
    for model, basis, sample in zip(models, bases, _along_circles(models, bases, few, order=1), strict=True):
        harmonics = fit_harmonics(sample[0], few)
        first, second = harmonics.reshape(2, -1).norm(dim=1)
        ratio = float(second / first)
        if 10 * ratio**2 <= precision:
            found.append(harmonics)
        elif 100 * ratio**3 <= precision:
            (more,) = _along_circles([model], [basis], like.new_tensor(MORE), order=1)
            found.append(fit_harmonics(torch.cat([sample[0], more[0]]), all_of_them))
        else:
            found.append(None)
    return found


def fit_harmonics(velocity: Tensor, angles: Tensor) -> Tensor:
    """Coefficients of cos, sin, cos 2, sin 2, ... in float64, (2 M, D), for velocities (2 M, D) at 2 M angles."""
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


def _along_circles(models: Sequence[Any], bases: Sequence[Tensor], angles: Tensor, *, order: int) -> Iterator[Tensor]:
    """Derivatives of each `CurveModel` at all angles, (order, n, D).

    Each point is a separate image, so if there are more cores than models, several cores share the points of a model.
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
