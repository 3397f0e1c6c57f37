"""Rules that combine scores, fitted on several tables and judged on a table that is left out.

A rule is a weighted sum of ranks within a pool of topologies. It may know of a table what is known before any of its
topologies is trained: the number of images per class, and whether training distils.

Legend: `P` scores, `C` facts of a table, `n` topologies.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from orchestrator.discovery.objective import joint_objective
from orchestrator.evaluation.joint import ScoredTable

Array = NDArray[np.float64]

BASELINES = ("params", "flops", "depth")
PENALTIES = tuple(float(penalty) for penalty in np.logspace(-1, 3, 9))
"""Candidates of the penalty on squared weights, as multiples of the number of topologies of a table."""
MAX_TERMS = 3
"""Maximum number of scores of a sum."""
KEPT = 20
"""Number of sums whose mean is the selected rule, but at most a tenth of all sums."""
_ROUNDING = 1e-10
_MIDDLE_IMAGES = math.log(100)
"""Logarithm of the number of images per class at which the fact is 0."""


class DataFacts(BaseModel):
    """What is known of a target before any topology is trained on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    images_per_class: float
    is_distilled: bool

    def vector(self) -> Array:
        """One, distillation as -1 or 1, and the images per class on a logarithmic scale; shape (C,)."""
        amount = (math.log(self.images_per_class) - _MIDDLE_IMAGES) / math.log(10)
        return np.array([1.0, 1.0 if self.is_distilled else -1.0, amount])


@dataclass(frozen=True, kw_only=True)
class TravelTable:
    """A table with the facts of its data. Scores have one seed."""

    table: ScoredTable
    facts: DataFacts

    @property
    def space(self) -> str:
        """The search space of the topologies."""
        return self.table.topologies[0].partition(":")[0]

    def score(self, name: str) -> Array:
        """The scores of one name, shape (n,)."""
        return np.asarray(self.table.scores[name][0], dtype=float)

    def only(self, mask: NDArray[np.bool_]) -> "TravelTable":
        """The table restricted to some topologies."""
        places = [int(place) for place in np.flatnonzero(mask)]
        kept = replace(
            self.table,
            topologies=tuple(self.table.topologies[place] for place in places),
            accuracies=[self.table.accuracies[place] for place in places],
            scores={
                name: [[row[place] for place in places] for row in rows] for name, rows in self.table.scores.items()
            },
            sizes=None if self.table.sizes is None else [self.table.sizes[place] for place in places],
        )
        return TravelTable(table=kept, facts=self.facts)


class TravelRule(BaseModel):
    """A weighted sum of the ranks of scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: dict[str, tuple[float, ...]]
    """For each score, a weight for each fact; the weights of the facts add up, times the facts of the table."""

    def predict(self, table: TravelTable) -> list[float]:
        """One value per topology, higher is better; nan if all scores of the rule failed."""
        ranks = np.array([pool_ranks(table.score(name)) for name in self.weights])
        facts = table.facts.vector()
        factors = np.array([facts[: len(weights)] @ np.asarray(weights) for weights in self.weights.values()])
        values = factors @ np.nan_to_num(ranks)
        return [float(value) for value in np.where(np.isfinite(ranks).any(0), values, math.nan)]


Fit = Callable[[Sequence[TravelTable]], TravelRule]
FittedOn = Literal["all tables", "same space", "other spaces"]


def pool_ranks(values: Array) -> Array:
    """Midranks within a pool, from -0.5 to 0.5 and 0 in the mean; nan for a value that is not finite."""
    from scipy.stats import rankdata

    finite = np.isfinite(values)
    found = np.full(len(values), math.nan)
    found[finite] = (rankdata(values[finite]) - 0.5) / finite.sum() - 0.5
    return found


def leave_out(
    tables: Sequence[TravelTable],
    fit: Fit,
    *,
    fitted_on: FittedOn,
    num_folds: int = 5,
    seed: int = 0,
) -> list[list[float]]:
    """Predict every table with rules that were fitted without it.

    If other tables have topologies of the left-out table with another target, these are predicted out of fold: the rule
    for a topology has seen neither its table nor the topology on any other table. Ranks within the pool of the left-out
    table need no accuracies, and use all its topologies.

    Args:
        tables: At least two tables with scores of the same names.
        fit: Fits a rule to tables.
        fitted_on: The tables to which a rule is fitted, which never include the left-out one.
        num_folds: Number of parts of the topologies.
        seed: Seed of the assignment of topologies to parts.

    Returns:
        For each table, one prediction per topology, higher is better.

    Raises:
        ValueError: Nothing remains to fit a rule to.
    """
    predictions = []
    for index, table in enumerate(tables):
        others = [
            other
            for at, other in enumerate(tables)
            if at != index
            and (fitted_on != "same space" or other.space == table.space)
            and (fitted_on != "other spaces" or other.space != table.space)
        ]
        if not others:
            raise ValueError(
                f"to leave out {table.table.title}, there must be another table ({fitted_on}), but there is none. Add "
                "tables."
            )
        parts = _parts(table.table.topologies, num_folds, seed)
        shared = {name for other in others for name in other.table.topologies} & parts.keys()
        found = [math.nan] * len(parts)
        for part in sorted({parts[name] for name in parts}) if shared else [None]:
            hidden = {name for name, number in parts.items() if part is None or number == part}
            seen = [
                other.only(np.array([name not in hidden for name in other.table.topologies])) if shared else other
                for other in others
            ]
            values = fit(seen).predict(table)
            for place, name in enumerate(table.table.topologies):
                if name in hidden:
                    found[place] = values[place]
        predictions.append(found)
    return predictions


def select_rule(tables: Sequence[TravelTable]) -> TravelRule:
    """The mean of the `KEPT` best sums of at most `MAX_TERMS` ranks, by the joint objective.

    The objective is the mean and the worst difference of tau from the strongest baseline of each table, averaged. The
    mean over many good sums varies less with the tables than the best one.
    """
    arena = _Arena(tables)
    names = list(tables[0].table.scores)
    subsets = [subset for size in range(1, MAX_TERMS + 1) for subset in itertools.combinations(range(len(names)), size)]
    values = arena.objective_of_sums(subsets, names)
    best = sorted(range(len(subsets)), key=lambda place: -values[place])[: min(KEPT, math.ceil(len(subsets) / 10))]
    weights = dict.fromkeys(range(len(names)), 0.0)
    for place in best:
        for index in subsets[place]:
            weights[index] += 1 / len(subsets[place]) / len(best)
    return TravelRule(weights={names[index]: (weight,) for index, weight in weights.items() if weight})


def learn_rule(tables: Sequence[TravelTable]) -> TravelRule:
    """A ridge regression of the accuracy's rank on the ranks of all scores.

    All tables count equally. Leaving out one table after the other chooses the penalty, by the joint objective.
    """
    return _learn(tables, num_facts=1)


def learn_rule_with_facts(tables: Sequence[TravelTable]) -> TravelRule:
    """Like `learn_rule`, with a weight for every score and fact of the data, so that weights vary with the target."""
    return _learn(tables, num_facts=len(tables[0].facts.vector()))


def _learn(tables: Sequence[TravelTable], *, num_facts: int) -> TravelRule:
    arena = _Arena(tables)
    names = list(tables[0].table.scores)
    features = [
        np.concatenate(
            [fact * np.array([ranks[name] for name in names]) for fact in table.facts.vector()[:num_facts]]
        ).T
        for table, ranks in zip(tables, arena.ranks, strict=True)
    ]
    targets = [pool_ranks(np.asarray(table.table.accuracies, dtype=float)) for table in tables]
    penalty = PENALTIES[-1]
    if len(tables) > 2:
        predicted = [
            _ridge([one for at, one in enumerate(features) if at != index], targets[:index] + targets[index + 1 :])
            for index in range(len(tables))
        ]
        values = [
            arena.objective([feature @ weights[:, at] for feature, weights in zip(features, predicted, strict=True)])
            for at in range(len(PENALTIES))
        ]
        penalty = PENALTIES[int(np.argmax(values))]
    weights = _ridge(features, targets)[:, PENALTIES.index(penalty)].reshape(num_facts, len(names))
    return TravelRule(weights={name: tuple(weights[:, at].tolist()) for at, name in enumerate(names)})


class _Arena:
    """Tables with the ranks of all scores, on which the objective of predictions is computed."""

    def __init__(self, tables: Sequence[TravelTable]) -> None:
        self.ranks: list[Mapping[str, Array]] = [
            {name: np.nan_to_num(pool_ranks(table.score(name))) for name in table.table.scores} for table in tables
        ]
        self._truths = [_pair_signs(np.asarray(table.table.accuracies, dtype=float)) for table in tables]
        self._strongest = [
            max(_tau(truth, _pair_signs(ranks[name])) for name in BASELINES if name in ranks)
            for truth, ranks in zip(self._truths, self.ranks, strict=True)
        ]

    def objective(self, predictions: Sequence[Array]) -> float:
        """Mean and worst difference of tau from the strongest baseline, averaged; predictions by table."""
        differences = [
            _tau(truth, _pair_signs(values)) - strongest
            for truth, values, strongest in zip(self._truths, predictions, self._strongest, strict=True)
        ]
        return float(joint_objective(np.array(differences)))

    def objective_of_sums(self, subsets: Sequence[Sequence[int]], names: Sequence[str]) -> list[float]:
        """The objective of the sum of the ranks of each subset of the named scores."""
        differences = np.empty((len(self._truths), len(subsets)))
        for row, truth, ranks, strongest in zip(differences, self._truths, self.ranks, self._strongest, strict=True):
            pairs = np.array([_pair_differences(ranks[name]) for name in names])
            row[:] = [_tau(truth, _signs(pairs[list(subset)].sum(0))) - strongest for subset in subsets]
        return [float(value) for value in joint_objective(differences)]


def _pair_differences(values: Array) -> Array:
    first, second = np.triu_indices(len(values), 1)
    found: Array = values[first] - values[second]
    return found


def _signs(differences: Array) -> NDArray[np.float32]:
    """Signs of differences; sums of equal ranks may differ by rounding."""
    return np.sign(np.where(np.abs(differences) < _ROUNDING, 0, differences)).astype(np.float32)


def _pair_signs(values: Array) -> NDArray[np.float32]:
    return _signs(_pair_differences(values))


def _tau(truth_signs: NDArray[np.float32], signs: NDArray[np.float32]) -> float:
    """Tau-b from the signs of all pairs; -1 if all values are equal."""
    untied = np.count_nonzero(signs)
    if not untied:
        return -1.0
    return float(truth_signs @ signs) / math.sqrt(np.count_nonzero(truth_signs) * untied)


def _ridge(features: Sequence[Array], targets: Sequence[Array]) -> Array:
    """Weights for every penalty, shape (C P, penalties). Each table has the same weight."""
    rows = np.concatenate([feature / math.sqrt(len(feature)) for feature in features])
    values = np.concatenate([target / math.sqrt(len(target)) for target in targets])
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    shrunk = singular[:, None] / (singular[:, None] ** 2 + np.asarray(PENALTIES) / 10)
    weights: Array = right.T @ (shrunk * (left.T @ values)[:, None])
    return weights


def _parts(topologies: Sequence[str], num_folds: int, seed: int) -> dict[str, int]:
    """The part of each topology. The same topologies have the same parts in every table."""
    names = sorted(topologies)
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[place]: int(number) % num_folds for number, place in enumerate(order)}
