"""Orthogonal factors of matrices by polynomial iterations whose coefficients suit the shape of the matrix."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_SAFETY = 1.01
"""Singular values are divided by this number, so that rounding does not push one beyond the interval."""


class Quintic(NamedTuple):
    """The odd polynomial `a x + b x^3 + c x^5`."""

    a: float
    b: float
    c: float

    def __call__(self, x: float) -> float:
        return x * (self.a + x * x * (self.b + x * x * self.c))


def singular_interval(rows: int, columns: int) -> tuple[float, float]:
    """Smallest and largest typical singular value of a matrix of independent normal numbers with Frobenius norm 1.

    They are `(sqrt(p) ± sqrt(q)) / sqrt(p q)` for sides `p >= q` (Marchenko and Pastur 1967). The difference is at
    least `1 / sqrt(p)`, the order of the smallest singular value of a square matrix before it is divided by its norm.
    """
    long, short = max(rows, columns), min(rows, columns)
    size = math.sqrt(long * short)
    smallest = max(math.sqrt(long) - math.sqrt(short), 1 / math.sqrt(long))
    return smallest / size, min((math.sqrt(long) + math.sqrt(short)) / size, 1.0)


@lru_cache(maxsize=256)
def shape_coefficients(rows: int, columns: int, num_iterations: int) -> tuple[Quintic, ...]:
    """Polynomials that map the singular values of a matrix of this shape to almost 1 when applied in turn.

    Each is the best approximation of 1, in the largest deviation, on the interval in which the previous ones leave the
    singular values. The first interval reaches from the smallest typical singular value (`singular_interval`) to 1, the
    bound of every matrix with Frobenius norm 1.
    """
    low, high = singular_interval(rows, columns)[0], 1.0
    found: list[Quintic] = []
    for _ in range(num_iterations):
        best = best_quintic(low, high)
        found.append(best)
        low = best(low)
        high = 2 - low
    return tuple(found)


def best_quintic(low: float, high: float) -> Quintic:
    """The quintic with the smallest largest deviation from 1 on an interval above 0, by the exchange of Remez.

    At the four points with the largest deviation, its sign alternates: the ends and the two extrema between.

    Source: Amsel et al. 2025, arXiv:2505.16932, section 3.
    """
    if high - low < 1e-3 * high:  # the Taylor polynomial at the middle, which differs by less than rounding
        middle = (low + high) / 2
        return Quintic(15 / 8 / middle, -10 / 8 / middle**3, 3 / 8 / middle**5)
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    coefficients = np.zeros(4)
    for _ in range(100):
        points = np.array([low, *inner, high])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        coefficients = np.linalg.solve(system, np.ones(4))
        a, b, c, _ = coefficients
        spread = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        extrema = sorted(math.sqrt(max((-3 * b + sign * spread) / (10 * c), 0.0)) for sign in (1, -1))
        moved = max(abs(new - old) for new, old in zip(extrema, inner, strict=True))
        inner = extrema
        if moved < 1e-12 * high:
            break
    return Quintic(*(float(value) for value in coefficients[:3]))


def apply_in_turn(polynomials: Iterable[Quintic], matrices: "Tensor") -> "Tensor":
    """Apply odd polynomials to the singular values of matrices of one shape, without computing these.

    Args:
        polynomials: The first is applied first.
        matrices: Shape (K, rows, columns).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = x.baddbmm(gram.baddbmm(gram, gram, beta=b, alpha=c), x, beta=a)
    factors: Tensor = x.mT if tall else x
    return factors


def orthogonalize(matrices: "Tensor", *, num_iterations: int) -> "Tensor":
    """The orthogonal factors `U V^T` of matrices `U S V^T` of one shape, approximately.

    Args:
        matrices: Shape (K, rows, columns), float32 or float64. A zero matrix stays zero.
        num_iterations: Number of polynomials; the deviation of typical singular values from 1 falls with each.
    """
    rows, columns = matrices.shape[-2:]
    normed = matrices / (matrix_norms(matrices).clamp_min(1e-30) * _SAFETY)
    return apply_in_turn(shape_coefficients(rows, columns, num_iterations), normed)


def matrix_norms(matrices: "Tensor") -> "Tensor":
    """Frobenius norms, shape (K, 1, 1), of matrices (K, rows, columns)."""
    norms: Tensor = matrices.flatten(1).norm(dim=1)[:, None, None]
    return norms
