"""The curve that a network makes of a circle in its input space, and how long and bent it is.

Legend: `n` points on the circle, `D` features, images of (C, H, W).

Source: Chen et al. 2022, As-ViT, arXiv:2202.11921; Poole et al. 2016, arXiv:1606.05340. The paper scales the circle by
the square root of the number of inputs; like the authors' code we leave it at radius 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from plugins.proxies.repeats import repeat_seeds

if TYPE_CHECKING:
    from plugins.protocols import Candidate

PIXELS_AT_ONCE = 65_536
"""Networks of several repeats are computed together while their circles have no more pixels than this: small tensors
wait for the number of operations, large ones for memory."""


def circle_angles(num_points: int, *, like: Tensor) -> Tensor:
    """Angles from 0 to 2 pi, both ends included, shape (n,), on the device and in the dtype of `like`."""
    angles: Tensor = torch.linspace(0, 2 * math.pi, num_points, dtype=torch.float64).to(like)
    return angles


def circle_basis(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Two random orthonormal directions in the space of images, shape (2, *shape), float64 on the CPU."""
    columns = torch.randn(math.prod(shape), 2, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(columns).Q.T.reshape(2, *shape)
    return basis


def circle_points(angles: Tensor, basis: Tensor) -> Tensor:
    """Images on the circle, shape (n, C, H, W), at angles (n,) in the plane of `basis` (2, C, H, W)."""
    shape = (-1,) + (1,) * (basis.dim() - 1)
    return angles.view(shape).cos() * basis[0] + angles.view(shape).sin() * basis[1]


def curve_velocity(features: Callable[[Tensor], Tensor], angles: Tensor, basis: Tensor) -> Tensor:
    """Derivative of the features by the angle, shape (n, D), by forward-mode differentiation.

    Args:
        features: Images (n, C, H, W) to features (n, D), each image on its own.
        angles: Shape (n,).
        basis: Shape (2, C, H, W).
    """
    velocity: Tensor = jvp(lambda at: features(circle_points(at, basis)), (angles,), (torch.ones_like(angles),))[1]
    return velocity


def curve_acceleration(features: Callable[[Tensor], Tensor], angles: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of the features by the angle, each (n, D); arguments as `curve_velocity`."""
    derivatives = jvp(lambda at: curve_velocity(features, at, basis), (angles,), (torch.ones_like(angles),))
    return derivatives[0], derivatives[1]


def length_distortion(velocity: Tensor) -> Tensor:
    """Sum over the points of the curve's speed; velocities (..., n, D) to (...).

    `L = sum_j ||v(theta_j)||`, without the factor of the angles' distance, as in the authors' code.
    """
    return velocity.square().sum(-1).sqrt().sum(-1)


def extrinsic_curvature(velocity: Tensor, acceleration: Tensor) -> Tensor:
    """Sum over the points of the curve's curvature; derivatives (..., n, D) to (...); nan where the curve stands still.

    `kappa = sum_j (v.v)^(-3/2) sqrt((v.v)(a.a) - (v.a)^2)`.
    """
    vv, aa = velocity.square().sum(-1), acceleration.square().sum(-1)
    va = (velocity * acceleration).sum(-1)
    return (vv.pow(-1.5) * (vv * aa - va.square()).clamp_min(0).sqrt()).sum(-1)


class FeatureModule(nn.Module):
    """A model whose forward pass gives the pooled features, so that `torch.func.functional_call` reaches them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features


def score_curves(
    candidate: "Candidate",
    measure: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor],
    *,
    repeats: int,
    num_points: int,
) -> list[float]:
    """A measure of the curves of `repeats` fresh networks without normalisation, each on a circle of its own.

    Args:
        candidate: What to score.
        measure: From `features`, angles (n,) and basis (2, C, H, W) to a scalar.
        repeats: Number of networks.
        num_points: Angles per circle, `n`.
    """
    images = candidate.images
    angles = circle_angles(num_points, like=images)
    models, bases = [], []
    for seed in repeat_seeds(candidate.seed, repeats):
        models.append(FeatureModule(candidate.build(seed=seed, normalization=False)))
        generator = torch.Generator().manual_seed(seed)
        bases.append(circle_basis(images.shape[1:], generator=generator).to(images))

    def one(state: dict[str, Tensor], basis: Tensor) -> Tensor:
        return measure(lambda points: functional_call(models[0], state, (points,)), angles, basis)

    parameters, buffers = stack_module_state(models)
    at_once = max(1, min(repeats, PIXELS_AT_ONCE // (num_points * images.shape[-2] * images.shape[-1])))
    # The fused attention kernels have no forward-mode derivative.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        values = vmap(one, chunk_size=at_once)({**parameters, **buffers}, torch.stack(bases))
    return [float(value) for value in values]
