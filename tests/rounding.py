"""Bounds of rounding errors, so that numeric tests hold on every CPU and still catch a wrong formula.

Libraries add the same terms in another order on another CPU, with another number of threads and in another version.
The bounds here hold for every order:

* A sum or dot product of `n` terms is off by at most `gamma(n) = n u / (1 - n u)` times the sum of the terms' absolute
  values, where `u` is half the dtype's `eps` (Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd edition,
  section 3.1, equations 3.4 and 3.5).
* The bounds of consecutive steps add up: `gamma(j) + gamma(k) + gamma(j) gamma(k) <= gamma(j + k)` (lemma 3.3 there). A
  chain of layers therefore counts the terms of all its sums, see `path_length`.
* Terms cancel, so an error is compared with the size of what is summed and never with a single small result. If the
  terms are not at hand, the largest result takes their place: the terms of a random sum have random signs, and its
  error then grows with the square root of `n` only (Higham and Mary 2019, doi:10.1137/18M1226312), as the result does.

The order of terms is all that differs between two correct computations. If a result also amplifies errors of its input,
as `log` does near 1 or the smallest eigenvalue of a matrix, the test passes a condition number.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.models.blocks import SelfAttention


def gamma(num_terms: int, dtype: torch.dtype = torch.float64) -> float:
    """Relative error bound of a sum of `num_terms` terms in any order, relative to the sum of their absolute values."""
    product = num_terms * torch.finfo(dtype).eps / 2
    assert product < 0.5, f"no digit of a sum of {num_terms} terms is certain in {dtype}"
    return product / (1 - product)


def difference_bound(num_terms: int, dtype: torch.dtype = torch.float64, *, condition: float = 1.0) -> float:
    """Relative difference bound of two computations of a result, each with `num_terms` terms on its longest path."""
    return 2 * condition * gamma(num_terms, dtype)


def likely_difference(num_terms: int, dtype: torch.dtype = torch.float64) -> float:
    """Relative difference that two computations of `num_terms` roundings exceed with a probability of 1e-4 at most.

    This is for trainings, for which the bound for every order is too loose: rounding errors of random sign grow with
    the square root of their number. The difference stays below `2 lambda sqrt(n) u` with a probability of at least
    `1 - 2 n exp(-lambda^2 / 2)`.

    Source: Higham and Mary 2019, doi:10.1137/18M1226312, theorem 2.4.
    """
    factor = math.sqrt(2 * math.log(2 * num_terms / 1e-4))
    return factor * math.sqrt(num_terms) * torch.finfo(dtype).eps


def rounded(
    expected: float | Sequence[float], num_terms: int, dtype: torch.dtype = torch.float64, *, condition: float = 1.0
) -> Any:
    """Equals numbers within the rounding of `num_terms` terms.

    Args:
        expected: A number, or several of about the same size.
        num_terms: Number of terms on the longest path of the computation.
        dtype: The coarsest dtype used.
        condition: Relative error of the result per relative error of a sum.
    """
    size = abs(expected) if isinstance(expected, int | float) else max(map(abs, expected))
    return pytest.approx(expected, rel=0, abs=size * difference_bound(num_terms, dtype, condition=condition))


def assert_rounded(
    found: Tensor, expected: Tensor, num_terms: int, *, size: float | Tensor | None = None, condition: float = 1.0
) -> None:
    """Assert that tensors are equal within the rounding of `num_terms` terms in the coarser of their two dtypes.

    Args:
        found: Tensor to check.
        expected: Tensor of the same shape.
        num_terms: Number of terms on the longest path of the computation.
        size: Sum of the terms' absolute values, for all elements or for each. Default: the largest expected value.
        condition: Relative error of the result per relative error of a sum.
    """
    dtype = max(found.dtype, expected.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    found, expected = found.detach().double(), expected.detach().double()
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    sizes = torch.as_tensor(expected.abs().max() if size is None else size, dtype=torch.float64)
    bound = difference_bound(num_terms, dtype, condition=condition) * sizes
    errors = (found - expected).abs() / bound.clamp_min(torch.finfo(torch.float64).tiny)
    assert errors.max() <= 1, f"the largest error is {float(errors.max()):.3g} times the bound of {num_terms} terms"


def path_length(model: nn.Module, num_tokens: int) -> int:
    """Number of terms on the longest path through a vision transformer: the lengths of all its sums.

    Args:
        model: The model; each of its layers is used once, one after another.
        num_tokens: Largest number of tokens in a window of attention, over which softmax and the mixing of values add.
    """
    return sum(_num_terms(module, num_tokens) for module in model.modules())


def _num_terms(module: nn.Module, num_tokens: int) -> int:
    if isinstance(module, nn.Linear | nn.Conv2d):
        return 1 + module.weight[0].numel()
    if isinstance(module, nn.LayerNorm):
        return 2 * sum(module.normalized_shape)  # the mean and the variance
    if isinstance(module, SelfAttention):
        return module.head_width + 2 * num_tokens
    return 0
