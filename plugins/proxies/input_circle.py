"""The curve to which a network maps a circle in its input space, with its length and curvature.

Legend: `n` points on the circle, `D` features, images of (C, H, W).

Source: Chen et al. 2022, As-ViT, arXiv:2202.11921; Poole et al. 2016, arXiv:1606.05340. The paper scales the circle by
the square root of the number of inputs. Our radius is 1, as in the authors' code.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel


def circle_angles(num_points: int, *, like: Tensor) -> Tensor:
    """Angles from 0 to 2 pi, both ends included, shape (n,), on the device and in the dtype of `like`."""
    angles: Tensor = torch.linspace(0, 2 * math.pi, num_points, dtype=torch.float64).to(like)
    return angles


def circle_basis(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Draw two random orthonormal directions in the space of images, shape (2, *shape), float64 on the CPU."""
    columns = torch.randn(2, math.prod(shape), generator=generator).double()
    basis: Tensor = torch.linalg.qr(columns.T).Q.T.reshape(2, *shape)
    return basis


def circle_points(angles: Tensor, basis: Tensor) -> Tensor:
    """Images on the circle, shape (n, C, H, W), at angles (n,) in the plane of `basis` (2, C, H, W)."""
    points: Tensor = torch.tensordot(circle_weights(angles, order=0)[0], basis, 1)
    return points


def circle_weights(angles: Tensor, *, order: int) -> Tensor:
    """Coefficients of the two directions for points at angles (n,) and their derivatives, shape (order + 1, n, 2)."""
    turned = [angles + index * math.pi / 2 for index in range(order + 1)]
    return torch.stack([torch.stack([angle.cos(), angle.sin()], -1) for angle in turned])


def curve_derivatives(features: Callable[[Tensor], Tensor], angles: Tensor, basis: Tensor, *, order: int) -> Tensor:
    """Features on the circle and their derivatives with respect to the angle, by nested forward-mode autograd.

    Args:
        features: Maps images (n, C, H, W) to features (n, D), independently of each other.
        angles: Shape (n,).
        basis: Shape (2, C, H, W).
        order: Highest derivative.

    Returns:
        Shape (order + 1, n, D).
    """

    def raised(lower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def derivatives(at: Tensor) -> Tensor:
            found = jvp(lower, (at,), (torch.ones_like(at),))
            return torch.cat([found[0], found[1][-1:]])

        return derivatives

    def values(at: Tensor) -> Tensor:
        return features(circle_points(at, basis)).unsqueeze(0)

    curve: Callable[[Tensor], Tensor] = values
    for _ in range(order):
        curve = raised(curve)
    # The fused attention kernels do not support forward-mode derivatives.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return curve(angles)


def length_distortion(velocity: Tensor) -> Tensor:
    """Sum of the curve's speed over the points; maps velocities (n, D) to a scalar.

    `L = sum_j ||v(theta_j)||`, without the distance of the angles as a factor, as in the authors' code.
    """
    return velocity.square().sum(-1).sqrt().sum(-1)


def extrinsic_curvature(velocity: Tensor, acceleration: Tensor) -> Tensor:
    """Sum of the curve's curvature over the points; maps derivatives (n, D) to a scalar; nan if a velocity is 0.

    `kappa = sum_j (v.v)^(-3/2) sqrt((v.v)(a.a) - (v.a)^2)`: the acceleration orthogonal to the velocity, divided by the
    squared speed.
    """
    speed, across = _speed_and_turn(velocity, acceleration)
    return (across / speed.square()).sum(-1)


def gauss_length(velocity: Tensor, acceleration: Tensor) -> Tensor:
    """Length of the curve of unit tangents; maps derivatives (n, D) to a scalar; nan if a velocity is 0.

    `L_G = sum_j || d/dtheta (v / ||v||) ||`: the acceleration orthogonal to the velocity, divided by the speed. The
    authors' code has a broadcasting bug here, so its numbers differ.
    """
    speed, across = _speed_and_turn(velocity, acceleration)
    return (across / speed).sum(-1)


def _speed_and_turn(velocity: Tensor, acceleration: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the velocity and of the component of the acceleration orthogonal to it, each (n,)."""
    speed = velocity.square().sum(-1, keepdim=True).sqrt()
    direction = velocity / speed
    across = acceleration - direction * (direction * acceleration).sum(-1, keepdim=True)
    return speed.squeeze(-1), across.square().sum(-1).sqrt()
