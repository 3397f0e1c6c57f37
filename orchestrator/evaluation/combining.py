"""Combinations of several scores: by rank, or with weights learned from accuracies and judged out of fold."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Array = NDArray[np.float64]
Scores = Mapping[str, Sequence[float]]
"""For each proxy, one score per topology, oriented so that higher is better. A failed score is not finite."""

MIN_TO_LEARN = 10
"""Minimum number of topologies to learn from."""

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-2, 3, 16))
"""Candidates for the inner folds. With the largest, a proxy's weight is nearly proportional to its correlation."""


def rank_aggregates(oriented: Scores) -> dict[str, list[float]]:
    """Combinations without learning, higher is better: `mean-rank` and `log-rank`.

    The ascending ranks of each proxy's scores are divided by their number, so that the best score has rank 1; equal
    scores share their mean rank. `mean-rank` is the mean of these ranks over the proxies. `log-rank` is the mean of
    their logarithms, which penalises a bad rank more than it rewards a good one. A proxy that failed on a topology is
    excluded from the mean of this topology. If all proxies failed, the result is nan.

    Source: log-rank: Lee and Ham 2024, arXiv:2403.19232 (AZ-NAS).
    """
    table = _table(oriented)
    ranks = np.column_stack([_relative_ranks(column, column) for column in table.T])
    return {"mean-rank": _mean_of_known(ranks), "log-rank": _mean_of_known(np.log(ranks))}


class LearnedCombination(BaseModel):
    """A ridge regression of the accuracy's rank on the ranks of the scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: dict[str, float]
    """For each proxy, the increase of the predicted rank from the proxy's worst to its best rank."""
    penalty: float
    """Penalty on the squared weights, chosen by inner cross-validation."""
    reference: dict[str, tuple[float, ...]]
    """For each proxy, the scores among which a new score is ranked."""

    @classmethod
    def fit(
        cls, oriented: Scores, accuracy: Sequence[float], *, seed: int, inner_folds: int = 5
    ) -> "LearnedCombination":
        """Fit the weights, with the penalty that predicts best in `inner_folds` folds.

        Args:
            oriented: Scores. A failed score gets the middle rank.
            accuracy: Accuracy of each topology, in any unit, since only the order matters.
            seed: Seed of the assignment of topologies to folds.
            inner_folds: Number of folds.

        Raises:
            ValueError: Fewer than `MIN_TO_LEARN` topologies have an accuracy.
        """
        table, truth = _table(oriented), np.asarray(accuracy, dtype=float)
        known = np.isfinite(truth)
        if known.sum() < MIN_TO_LEARN:
            raise ValueError(
                f"learning a combination needs at least {MIN_TO_LEARN} topologies with an accuracy, but got "
                f"{int(known.sum())}. Train more topologies, or combine by rank."
            )
        return cls._of(oriented, table, truth, known, inner_folds=inner_folds, seed=seed)

    @classmethod
    def _of(
        cls,
        oriented: Scores,
        table: Array,
        truth: Array,
        known: NDArray[np.bool_],
        *,
        inner_folds: int,
        seed: int,
    ) -> "LearnedCombination":
        """Fit to the topologies of a mask."""
        weights, penalty = _fit(table[known], truth[known], inner_folds, np.random.default_rng(seed))
        return cls(
            weights=dict(zip(oriented, weights.tolist(), strict=True)),
            penalty=penalty,
            reference=_reference(oriented, known),
        )

    def predict(self, oriented: Scores) -> list[float]:
        """Predict the rank of each topology, from 0 (worst) to 1 (best); nan if every proxy failed.

        Args:
            oriented: Scores, at least of the proxies with a weight.
        """
        columns = {name: np.asarray(oriented[name], dtype=float) for name in self.weights}
        terms = [
            weight * _features(np.asarray(self.reference[name]), columns[name]) for name, weight in self.weights.items()
        ]
        anything = np.any([np.isfinite(column) for column in columns.values()], axis=0)
        return [float(value) for value in np.where(anything, 0.5 + np.sum(terms, axis=0), np.nan)]

    def ranking_among(self, oriented: Scores) -> "LearnedCombination":
        """The same weights for another pool, ranking its scores among each other. This needs no accuracies."""
        known = np.ones(len(next(iter(oriented.values()))), dtype=bool)
        pool = {name: oriented[name] for name in self.weights}
        return self.model_copy(update={"reference": _reference(pool, known)})


def nested_predictions(
    oriented: Scores,
    accuracy: Sequence[float],
    *,
    seed: int,
    outer_folds: int = 5,
    inner_folds: int = 5,
    repeats: int = 10,
) -> list[float]:
    """Predict each topology with a learned combination that has not seen its accuracy.

    Topologies are split into `outer_folds` parts. Each part is predicted by a combination fitted on the other parts:
    scores and accuracies are ranked among these only, and `inner_folds` folds of these choose the penalty. Every model
    predicts the rank among its training topologies, which has the mean one half for every model. Predictions of
    different models are therefore comparable, and the mean prediction of a model reveals nothing about its fold.

    Args:
        oriented: Scores. A failed score gets the middle rank.
        accuracy: Accuracy of each topology.
        seed: Seed of the assignment of topologies to folds.
        outer_folds: Number of parts, each held out once.
        inner_folds: Number of folds that choose the penalty.
        repeats: Number of splits into parts. Predictions are averaged over them.

    Returns:
        One prediction per topology, from 0 (worst) to 1 (best). A prediction is nan if every proxy failed or the
        topology has no accuracy. All are nan if fewer than `MIN_TO_LEARN` topologies have an accuracy.

    Source: Stone 1974 (cross-validatory choice and assessment).
    """
    table, truth = _table(oriented), np.asarray(accuracy, dtype=float)
    (places,) = np.nonzero(np.isfinite(truth) & np.isfinite(table).any(1))
    predicted = np.full(len(truth), np.nan)
    if len(places) < MIN_TO_LEARN:
        return [float(value) for value in predicted]
    rng = np.random.default_rng(seed)
    total = np.zeros(len(places))
    for _ in range(repeats):
        for fold in _folds(len(places), outer_folds, rng):
            train, test = places[~fold], places[fold]
            weights, _ = _fit(table[train], truth[train], inner_folds, rng)
            total[fold] += 0.5 + _all_features(table[train], table[test]) @ weights
    predicted[places] = total / repeats
    return [float(value) for value in predicted]


def transfer(
    oriented_fit: Scores,
    accuracy_fit: Sequence[float],
    oriented_other: Scores,
    *,
    topologies_fit: Sequence[str] = (),
    topologies_other: Sequence[str] = (),
    seed: int = 0,
    folds: int = 5,
    repeats: int = 10,
) -> list[float]:
    """Predict another space or target with a combination fitted on one table.

    The scores of the other table are ranked among each other, since the scale of every score depends on the space. Only
    proxies in both tables are used.

    Topologies that are in both tables are predicted out of fold: they are split into `folds` parts, and each part is
    predicted by a combination fitted without it, as in `nested_predictions`. Otherwise the weights would have been
    fitted to those very topologies, whose accuracies for two targets have much in common.

    Args:
        oriented_fit: Scores of the table to learn from.
        accuracy_fit: Its accuracies.
        oriented_other: Scores of the table to predict.
        topologies_fit: Names of the topologies of the first table, to find those that the tables share.
        topologies_other: Names of those of the other table; empty if they share none.
        seed: Seed of the folds.
        folds: Number of parts of the shared topologies.
        repeats: Number of splits into parts. Predictions are averaged over them.

    Raises:
        ValueError: The tables have no proxy in common, or the first has fewer than `MIN_TO_LEARN` accuracies.
    """
    names = [name for name in oriented_fit if name in oriented_other]
    if not names:
        raise ValueError(
            f"both tables must have scores of the same proxies, but one has {list(oriented_fit)} and the other "
            f"{list(oriented_other)}. Score both with the same proxies."
        )
    scores = {name: oriented_fit[name] for name in names}
    fitted = LearnedCombination.fit(scores, accuracy_fit, seed=seed)
    found = np.array(fitted.ranking_among(oriented_other).predict(oriented_other))
    places = {name: place for place, name in enumerate(topologies_fit)}
    shared = [(place, places[name]) for place, name in enumerate(topologies_other) if name in places]
    if not shared:
        return [float(value) for value in found]
    here, there = (np.array(column) for column in zip(*shared, strict=True))
    table, truth = _table(scores), np.asarray(accuracy_fit, dtype=float)
    total, rng = np.zeros(len(shared)), np.random.default_rng(seed)
    for _ in range(repeats):
        for fold in _folds(len(shared), folds, rng):
            known = np.isfinite(truth)
            known[there[fold]] = False
            apart = LearnedCombination._of(scores, table, truth, known, inner_folds=5, seed=seed)
            total[fold] += np.array(apart.ranking_among(oriented_other).predict(oriented_other))[here[fold]]
    found[here] = total / repeats
    return [float(value) for value in found]


# --- the regression ---


def _fit(table: Array, truth: Array, inner_folds: int, rng: np.random.Generator) -> tuple[Array, float]:
    """Weights, shape (P,), and the penalty, from scores (n, P) and accuracies (n,)."""
    errors = np.zeros(len(PENALTIES))
    for fold in _folds(len(truth), inner_folds, rng):
        weights = _ridge(_all_features(table[~fold], table[~fold]), _features(truth[~fold], truth[~fold]))
        missed = _all_features(table[~fold], table[fold]) @ weights - _features(truth[~fold], truth[fold])[:, None]
        errors += (missed**2).sum(0)
    best = int(np.argmin(errors))
    return _ridge(_all_features(table, table), _features(truth, truth))[:, best], PENALTIES[best]


def _ridge(features: Array, target: Array) -> Array:
    """Weights without intercept for every penalty, shape (P, number of penalties)."""
    left, singular, right = np.linalg.svd(features, full_matrices=False)
    shrunk = singular[:, None] / (singular[:, None] ** 2 + np.asarray(PENALTIES))
    weights: Array = right.T @ (shrunk * (left.T @ target)[:, None])
    return weights


def _all_features(reference: Array, scores: Array) -> Array:
    return np.column_stack([_features(known, new) for known, new in zip(reference.T, scores.T, strict=True)])


def _features(reference: Array, scores: Array) -> Array:
    """The relative rank of each score in the reference, from -0.5 to 0.5; 0 for a failed score."""
    places = _relative_ranks(reference, scores, centred=True)
    return np.where(np.isfinite(places), places - 0.5, 0.0)


def _relative_ranks(reference: Array, scores: Array, *, centred: bool = False) -> Array:
    """Ascending midranks in the finite reference scores, divided by their number; nan for a non-finite score.

    Between two reference scores, the rank is interpolated linearly, so that new scores keep their order.

    Args:
        reference: Shape (n,).
        scores: Shape (m,).
        centred: Whether to subtract half a rank, so that the mean over the reference is one half.
    """
    values, counts = np.unique(reference[np.isfinite(reference)], return_counts=True)
    finite = np.isfinite(scores)
    if not len(values):
        return np.where(finite, 0.5, np.nan)
    middle = np.cumsum(counts) - counts / 2 + (0.0 if centred else 0.5)
    ranks = np.interp(np.where(finite, scores, 0.0), values, middle / counts.sum())
    return np.where(finite, ranks, np.nan)


def _folds(num_points: int, num_folds: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """Masks of random parts of nearly equal size."""
    part = rng.permutation(num_points) % min(num_folds, num_points)
    for number in range(min(num_folds, num_points)):
        yield part == number


def _table(oriented: Scores) -> Array:
    """Shape (n, P)."""
    if not oriented:
        raise ValueError(
            "a combination needs the scores of at least one proxy, but got none. Score with a proxy first."
        )
    return np.column_stack([np.asarray(scores, dtype=float) for scores in oriented.values()])


def _reference(oriented: Scores, known: NDArray[np.bool_]) -> dict[str, tuple[float, ...]]:
    columns = {name: np.asarray(scores, dtype=float)[known] for name, scores in oriented.items()}
    return {name: tuple(sorted(column[np.isfinite(column)].tolist())) for name, column in columns.items()}


def _mean_of_known(values: Array) -> list[float]:
    """Mean of the finite entries of each row; nan if there are none."""
    known = np.isfinite(values)
    return [float(row[mask].mean()) if mask.any() else math.nan for row, mask in zip(values, known, strict=True)]
