"""Rank statistics of many bootstrap resamples at once.

A resample is a row of weights: how often it drew each point. Every statistic here is exactly what it would be of the
points written out that often, without writing them out. Legend: `R` resamples, `n` points.

A point that was drawn twice is tied with itself in both orders. Tau-b leaves pairs that are tied in both out of its
numerator and its denominator, so such pairs do not move it; Spearman's rho gives the copies one midrank.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Weights = NDArray[np.uint16]

TOP_FRACTION = 0.1
"""Which part of the points counts as the top."""

_BLOCK_ELEMENTS = 2**21
"""Resamples are worked on in blocks of about this many weights, so that a million of them fit in memory."""


def resample_weights(num_points: int, *, resamples: int, seed: int) -> Weights:
    """How often each point is drawn, shape (1 + resamples, num_points): first all ones, the sample itself.

    Raises:
        ValueError: There are more points than a weight can count.
    """
    if num_points > np.iinfo(np.uint16).max:
        raise ValueError(f"at most {np.iinfo(np.uint16).max} points can be resampled, but there are {num_points}")
    weights = np.ones((1 + resamples, num_points), dtype=np.uint16)
    rng = np.random.default_rng(seed)
    for block in _blocks(weights[1:]):
        rows = np.arange(len(block))[:, None]
        drawn = rows * num_points + rng.integers(0, max(num_points, 1), size=block.shape)
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return weights


def kendall_tau(weights: Weights, x: Vector, y: Vector) -> Vector:
    """Kendall's tau-b of `x` and `y`, shape (n,) each, in every resample, shape (R,); nan where one is constant.

    With `w` the weights, concordant minus discordant pairs are `sum_ij w_i w_j sign(x_i - x_j) sign(y_i - y_j) / 2`,
    and the pairs that are not tied in `x` are `(N^2 - sum_g w_g^2) / 2` with `w_g` the weight of a group of equal `x`.

    Source: Kendall 1945.
    """
    of_x, of_y = _group(x), _group(y)
    # The codes keep the order, and their differences cannot overflow. Whole numbers below 2^24 are exact in float32.
    signs = np.sign(of_x.code[:, None] - of_x.code) * np.sign(of_y.code[:, None] - of_y.code)
    signs = signs.astype(np.float32)
    found = []
    for block in _blocks(weights):
        counts = block.astype(np.float32)
        agreement = np.einsum("rn,rn->r", counts @ signs, counts, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(agreement / np.sqrt(_untied(block, of_x) * _untied(block, of_y)))
    return np.concatenate(found)


def spearman_rho(weights: Weights, x: Vector, y: Vector) -> Vector:
    """Spearman's rho with midranks of `x` and `y`, shape (n,) each, in every resample, shape (R,); nan if constant.

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
    """Tau of `x` and `y` given `z`, from their three taus, elementwise; nan where `z` ranks exactly like `x` or `y`.

    Source: Kendall 1942.
    """
    left = (1 - xz**2) * (1 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left > 1e-12, (xy - xz * yz) / np.sqrt(left), np.nan)


def top_recall(weights: Weights, scores: Vector, truth: Vector, *, fraction: float = TOP_FRACTION) -> Vector:
    """Share of the places in the score's top that go to the truly best, shape (R,).

    The top has `fraction` of a resample's points, rounded, and at least one. What ties with the last of the truly best
    is one of them. Equal scores share the places that are left for them.
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
    """How much worse than the truly best point the score's first choice is, shape (R,), in the unit of `truth`.

    Among equal scores the choice falls by chance, and the mean over them counts.
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


# --- groups of equal values ---


class _Groups(NamedTuple):
    """Points by their value; `G` groups of equal values in rising order."""

    order: NDArray[np.intp]
    """Sorts the points, shape (n,)."""
    starts: NDArray[np.intp]
    """Where each group begins among the sorted points, shape (G,)."""
    code: NDArray[np.intp]
    """The group of each point, shape (n,)."""


def _group(values: Vector) -> _Groups:
    distinct, code, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(distinct) else np.empty(0)
    return _Groups(np.argsort(code, kind="stable"), starts.astype(np.intp), code)


def _sums(values: NDArray[np.generic], groups: _Groups) -> Vector:
    """Sums over each group, shape (R, G), of values of shape (R, n)."""
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
    """Each point's midrank minus the mean rank, shape (R, n)."""
    held = _sums(weights, groups)
    middle: Vector = np.cumsum(held, axis=1) - held / 2 - held.sum(1, keepdims=True) / 2
    return middle[:, groups.code]


def _weight_above(weights: Weights, groups: _Groups) -> Vector:
    """Weight of the points with a higher value than each group's, shape (R, G)."""
    held = _sums(weights, groups)
    above: Vector = held.sum(1, keepdims=True) - np.cumsum(held, axis=1)
    return above


def _last_nonzero(held: Vector) -> NDArray[np.intp]:
    last: NDArray[np.intp] = held.shape[1] - 1 - np.argmax(held[:, ::-1] > 0, axis=1)
    return last


def _blocks(weights: Weights) -> Iterator[Weights]:
    """Views of some rows each; at least one, even of no rows."""
    rows = max(1, _BLOCK_ELEMENTS // max(1, weights.shape[1]))
    for first in range(0, max(1, len(weights)), rows):
        yield weights[first : first + rows]
