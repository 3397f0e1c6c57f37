"""The objective of the search for formulas, computed from the statistics of topologies and their accuracies.

Legend: `S` statistics, `R` blocks of all networks, `T` topologies, `K` seeds of networks, `n` topologies of a truth.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from plugins.proxies.formulas import Formula, Statistic, evaluate

Indices = NDArray[np.intp]
Vector = NDArray[np.float64]

TIE = 1e-6
"""Scores that differ by less than this fraction of the largest are tied, since statistics are measured in float32."""
_SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Accuracies of some of the topologies."""

    name: str
    places: Indices
    """Indices of the topologies in the `BlockTable`, shape (n,)."""
    accuracy: Vector
    """Accuracy of each topology in any unit, shape (n,)."""
    strongest: float = 0.0
    """Tau of the strongest baseline on these topologies; 0 compares with chance."""

    def within(self, mask: NDArray[np.bool_]) -> "Truth":
        """The truth restricted to the topologies of a mask of shape (T,)."""
        kept = mask[self.places]
        return replace(self, places=self.places[kept], accuracy=self.accuracy[kept])


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """The statistics of every block of every topology's networks."""

    statistics: tuple[Statistic, ...]
    values: NDArray[np.float64]
    """Shape (S, R): the blocks of one network after the other, with all topologies of the first seed first."""
    counts: Indices
    """Number of blocks of each network, shape (K T,)."""
    num_seeds: int

    @cached_property
    def _starts(self) -> Indices:
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.intp)

    @cached_property
    def _rows(self) -> dict[Statistic, Vector]:
        return dict(zip(self.statistics, self.values, strict=True))

    @property
    def num_topologies(self) -> int:
        return len(self.counts) // self.num_seeds

    @property
    def depths(self) -> list[float]:
        """Number of blocks of each topology."""
        return [float(count) for count in self.counts[: self.num_topologies]]

    def scores(self, formula: Formula) -> NDArray[np.float64]:
        """Scores of every seed and topology, shape (K, T)."""
        found = evaluate(formula, self._rows, self._starts, counts=self.counts)
        return found.reshape(self.num_seeds, self.num_topologies)

    def only(self, mask: NDArray[np.bool_]) -> "BlockTable":
        """The table restricted to the topologies of a mask of shape (T,)."""
        networks = np.tile(mask, self.num_seeds)
        return replace(self, values=self.values[:, np.repeat(networks, self.counts)], counts=self.counts[networks])

    def useful_statistics(self) -> tuple[Statistic, ...]:
        """The statistics that are finite in every block and not constant."""
        finite = np.isfinite(self.values).all(1)
        useful = finite & (self.values.max(1) > self.values.min(1))
        return tuple(one for one, keep in zip(self.statistics, useful, strict=True) if keep)


def split_topologies(truths: Sequence[Truth], num_topologies: int, *, seed: int) -> NDArray[np.bool_]:
    """Draw half of each truth's topologies for the search, as a mask of shape (T,). The others are held out.

    A topology of several truths is in the same half for all of them.
    """
    rng = random.Random(f"halves {seed}")
    searched, assigned = np.zeros(num_topologies, dtype=bool), np.zeros(num_topologies, dtype=bool)
    for truth in truths:
        fresh = [int(place) for place in truth.places if not assigned[place]]
        searched[rng.sample(fresh, (len(fresh) + 1) // 2)] = True
        assigned[truth.places] = True
    return searched


class FormulaObjective:
    """The objective of a formula: how far it is ahead of the strongest baseline of each truth (`joint_objective`)."""

    def __init__(self, table: BlockTable, truths: Sequence[Truth]) -> None:
        self._table = table
        self._groups: list[tuple[Indices, list[int], NDArray[np.float32], NDArray[np.float32]]] = []
        """For each set of topologies: their indices, the numbers of their truths, and for each of these truths the
        signs of all pairs and how many are not 0."""
        self._strongest = np.array([truth.strongest for truth in truths])
        by_places: dict[bytes, list[int]] = {}
        for number, truth in enumerate(truths):
            by_places.setdefault(truth.places.tobytes(), []).append(number)
        for numbers in by_places.values():
            group = [truths[number] for number in numbers]
            if any(np.ptp(one.accuracy) == 0 for one in group):
                names = ", ".join(one.name for one in group)
                raise ValueError(
                    f"accuracies must differ, but all topologies to search on have the same accuracy ({names}). Add "
                    "topologies with other accuracies."
                )
            signs = np.stack([np.sign(one.accuracy[:, None] - one.accuracy).ravel() for one in group])
            counts = np.abs(signs).sum(1).astype(np.float32)
            self._groups.append((group[0].places, numbers, signs.astype(np.float32), counts))

    def __call__(self, formula: Formula) -> tuple[float, float]:
        """The objectives of the formula and of its negation; nan if a score is not finite or is the same everywhere."""
        taus = self.taus(formula)
        plain, negated = (float(joint_objective(sign * taus - self._strongest)) for sign in (1, -1))
        return plain, negated

    def taus(self, formula: Formula) -> Vector:
        """Kendall's tau-b with each truth, as a mean over the seeds; nan if undefined for any truth."""
        scores, found = self._table.scores(formula), np.zeros(len(self._strongest))
        if not np.isfinite(scores).all():
            return np.full_like(found, np.nan)
        for places, numbers, truth_signs, num_pairs in self._groups:
            for row in scores[:, places]:
                codes = np.rint(row / max(np.abs(row).max() * TIE, _SMALLEST)).astype(np.float32)
                signs = np.sign(codes[:, None] - codes).ravel()
                untied = np.count_nonzero(signs)
                if not untied:
                    return np.full_like(found, np.nan)
                found[numbers] += truth_signs @ signs / np.sqrt(num_pairs * untied)
        return found / self._table.num_seeds


def joint_objective(differences: Vector) -> Vector:
    """The mean and the lowest of the differences from the strongest baseline of each table, averaged.

    Args:
        differences: Differences of tau, shape (tables, ...).

    Returns:
        Shape (...).
    """
    found: Vector = (differences.mean(0) + differences.min(0)) / 2
    return found


def strongest_tau(truth: Truth, baselines: Sequence[Vector]) -> float:
    """The highest tau-b of the baselines with a truth, 0 if none has one.

    Args:
        truth: The accuracies.
        baselines: For each baseline, the score of each topology, shape (T,); higher is better.
    """
    truth_signs = np.sign(truth.accuracy[:, None] - truth.accuracy).ravel()
    taus = []
    for scores in baselines:
        signs = np.sign(scores[truth.places][:, None] - scores[truth.places]).ravel()
        num_pairs = np.count_nonzero(signs) * np.count_nonzero(truth_signs)
        if num_pairs:
            taus.append(float(truth_signs @ signs / np.sqrt(num_pairs)))
    return max(taus, default=0.0)
