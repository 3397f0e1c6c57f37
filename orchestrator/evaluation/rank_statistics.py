"""Rank statistics for many bootstrap resamples at once.

A resample is a row of weights: the number of times that each point was drawn. Every statistic equals the statistic of
the sample with repeated points, without repeating them. Legend: `R` resamples, `n` points.

A point that was drawn twice is tied with itself in both rankings. Tau-b excludes pairs tied in both rankings from its
numerator and denominator, so they do not affect it. Spearman's rho assigns one midrank to the copies.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Weights = NDArray[np.uint16]
Pairs = NDArray[np.bool_]

TOP_FRACTION = 0.1
"""Fraction of the points that counts as the top."""

LIKE_SIZE = 0.1
"""Two topologies have a like size if the larger one is at most this fraction larger."""

_BLOCK_ELEMENTS = 2**21
"""Approximate number of weights per block. Resamples are processed in blocks, so that a million fit in memory."""


def resample_weights(num_points: int, *, resamples: int, seed: int) -> Weights:
    """Number of draws of each point, shape (1 + resamples, num_points). The first row is the sample itself, all ones.

    Raises:
        ValueError: There are too many points for the type of the weights.
    """
    if num_points > np.iinfo(np.uint16).max:
        raise ValueError(
            f"at most {np.iinfo(np.uint16).max} points can be resampled, but got {num_points}. Use fewer topologies."
        )
    weights = np.ones((1 + resamples, num_points), dtype=np.uint16)
    rng = np.random.default_rng(seed)
    for block in _blocks(weights[1:]):
        rows = np.arange(len(block))[:, None]
        drawn = rows * num_points + rng.integers(0, max(num_points, 1), size=block.shape)
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return weights


def kendall_tau(weights: Weights, x: Vector, y: Vector, *, pairs: Pairs | None = None) -> Vector:
    """Kendall's tau-b of `x` and `y`, shape (n,) each, in every resample, shape (R,); nan if one is constant.

    With weights `w`, the number of concordant minus discordant pairs is
    `sum_ij w_i w_j sign(x_i - x_j) sign(y_i - y_j) / 2`. The number of pairs without a tie in `x` is
    `(N^2 - sum_g w_g^2) / 2`, where `w_g` is the weight of a group of equal `x`.

    Args:
        weights: Shape (R, n).
        x: One ranking.
        y: The other ranking.
        pairs: Symmetric mask of the pairs that count, shape (n, n), such as `like_sized`; by default all pairs. Then
            the pairs without a tie are counted like the concordant ones, with `|sign(x_i - x_j)|`.

    Source: Kendall 1945.
    """
    of_x, of_y = _group(x), _group(y)
    # Codes preserve the order, and their differences cannot overflow. Integers below 2^24 are exact in float32.
    x_signs = np.sign(of_x.code[:, None] - of_x.code).astype(np.float32)
    y_signs = np.sign(of_y.code[:, None] - of_y.code).astype(np.float32)
    if pairs is not None:
        x_signs, y_signs = x_signs * pairs, y_signs * pairs
    signs = x_signs * y_signs
    found = []
    for block in _blocks(weights):
        counts = block.astype(np.float32)
        if pairs is None:
            untied = _untied(block, of_x) * _untied(block, of_y)
        else:
            untied = _sum_over_pairs(counts, np.abs(x_signs)) * _sum_over_pairs(counts, np.abs(y_signs))
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(_sum_over_pairs(counts, signs) / np.sqrt(untied))
    return np.concatenate(found)


def like_sized(sizes: Vector, *, tolerance: float = LIKE_SIZE) -> Pairs:
    """Mask (n, n) of the pairs of points whose sizes (n,), all above 0, differ by at most a factor of 1 + tolerance.

    A point and itself are not a pair. A size that is not finite is like no other.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(sizes)
        near: Pairs = np.abs(logs[:, None] - logs) <= np.log1p(tolerance) + 1e-12
    np.fill_diagonal(near, val=False)
    return near


def spearman_rho(weights: Weights, x: Vector, y: Vector) -> Vector:
    """Spearman's rho with midranks of `x` and `y`, shape (n,) each, in every resample, shape (R,).

    It is nan if `x` or `y` is constant.

    Source: Spearman 1904.
    """
    of_x, of_y = _group(x), _group(y)
    found = []
    for block in _blocks(weights):
        x_ranks, y_ranks = _centred_midranks(block, of_x), _centred_midranks(block, of_y)
        covariance = np.einsum("rn,rn,rn->r", block, x_ranks, y_ranks, dtype=np.float64)
        variances = [np.einsum("rn,rn,rn->r", block, ranks, ranks, dtype=np.float64) for ranks in (x_ranks, y_ranks)]
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(covariance / np.sqrt(variances[0] * variances[1]))
    return np.concatenate(found)


def partial_tau(xy: Vector, xz: Vector, yz: Vector) -> Vector:
    """Partial tau of `x` and `y` given `z`, from the three taus, elementwise; nan if `z` ranks exactly like `x` or `y`.

    Source: Kendall 1942.
    """
    left = (1 - xz**2) * (1 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left > 1e-12, (xy - xz * yz) / np.sqrt(left), np.nan)


def top_recall(weights: Weights, scores: Vector, truth: Vector, *, fraction: float = TOP_FRACTION) -> Vector:
    """Fraction of the places in the score's top that the truly best points take, shape (R,).

    The top has `fraction` of the points of a resample, rounded, and at least one. Points tied with the last of the
    truly best points count as truly best, too. Equal scores share the places that remain for them.
    """
    of_scores, of_truth = _group(scores), _group(truth)
    found = []
    for block in _blocks(weights):
        places = np.maximum(1, np.floor(fraction * block.sum(1, dtype=np.int64, keepdims=True) + 0.5))
        better = _weight_above(block, of_truth)
        is_top = (better < places)[:, of_truth.code]
        held = _sums(block, of_scores)
        taken = np.clip(places - _weight_above(block, of_scores), 0, held)
        hits = _sums(block * is_top, of_scores)
        shares = np.divide(hits, held, out=np.zeros_like(held), where=held > 0)
        found.append((taken * shares).sum(1) / places[:, 0])
    return np.concatenate(found)


def regret(weights: Weights, scores: Vector, truth: Vector) -> Vector:
    """Difference between the truly best point and the score's first choice, shape (R,), in the unit of `truth`.

    Among equal highest scores, the choice is random, and the result is the mean over the choices.
    """
    of_scores, of_truth = _group(scores), _group(truth)
    found = []
    for block in _blocks(weights):
        held = _sums(block, of_scores)
        chosen = (np.arange(len(held)), _last_nonzero(held))
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = _sums(block * truth, of_scores)[chosen] / held[chosen]
        best = truth[of_truth.order][of_truth.starts][_last_nonzero(_sums(block, of_truth))]
        found.append(best - reached)
    return np.concatenate(found)


def _sum_over_pairs(counts: NDArray[np.float32], values: NDArray[np.float32]) -> Vector:
    """`sum_ij w_i w_j v_ij` for each row of weights (R, n) and a matrix of values (n, n), shape (R,)."""
    sums: Vector = np.einsum("rn,rn->r", counts @ values, counts, dtype=np.float64)
    return sums


# --- groups of equal values ---


class _Groups(NamedTuple):
    """Points grouped by value: `G` groups of equal values in ascending order."""

    order: NDArray[np.intp]
    """Indices that sort the points, shape (n,)."""
    starts: NDArray[np.intp]
    """Index of the first point of each group in sorted order, shape (G,)."""
    code: NDArray[np.intp]
    """Group of each point, shape (n,)."""


def _group(values: Vector) -> _Groups:
    distinct, code, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(distinct) else np.empty(0)
    return _Groups(np.argsort(code, kind="stable"), starts.astype(np.intp), code)


def _sums(values: NDArray[np.generic], groups: _Groups) -> Vector:
    """Sum of values (R, n) over each group, shape (R, G)."""
    ordered = values[:, groups.order].astype(np.float64)
    if len(groups.starts) == ordered.shape[1]:
        return ordered
    sums: Vector = np.add.reduceat(ordered, groups.starts, axis=1)
    return sums


def _untied(weights: Weights, groups: _Groups) -> Vector:
    """Twice the number of pairs with different values, shape (R,)."""
    held = _sums(weights, groups)
    untied: Vector = held.sum(1) ** 2 - np.einsum("rg,rg->r", held, held)
    return untied


def _centred_midranks(weights: Weights, groups: _Groups) -> Vector:
    """Midrank of each point minus the mean rank, shape (R, n)."""
    held = _sums(weights, groups)
    middle: Vector = np.cumsum(held, axis=1) - held / 2 - held.sum(1, keepdims=True) / 2
    return middle[:, groups.code]


def _weight_above(weights: Weights, groups: _Groups) -> Vector:
    """Weight of the points with a higher value than each group, shape (R, G)."""
    held = _sums(weights, groups)
    above: Vector = held.sum(1, keepdims=True) - np.cumsum(held, axis=1)
    return above


def _last_nonzero(held: Vector) -> NDArray[np.intp]:
    last: NDArray[np.intp] = held.shape[1] - 1 - np.argmax(held[:, ::-1] > 0, axis=1)
    return last


def _blocks(weights: Weights) -> Iterator[Weights]:
    """Views of consecutive rows; at least one view, even if there are no rows."""
    rows = max(1, _BLOCK_ELEMENTS // max(1, weights.shape[1]))
    for first in range(0, max(1, len(weights)), rows):
        yield weights[first : first + rows]
