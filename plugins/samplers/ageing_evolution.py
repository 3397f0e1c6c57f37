"""Regularised evolution as an Optuna sampler. The finished trials determine the population."""

import math
import random
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from plugins.samplers.history import KnownPoints, history_of, options_of

_REAL_STEP = 0.2
"""Standard deviation of the mutation of a real number, as a fraction of its range (on a log scale if it has one)."""
_MAX_TRIES = 40
_TRIES_PER_DISTANCE = 10
"""Number of children with one mutation to draw before children with two mutations, while all are known points."""


class AgeingEvolution(BaseSampler):
    """Mutates the winner of a tournament among the newest `population_size` trials. The first trials are random.

    Source: Real et al. 2019, arXiv:1802.01548, algorithm 1.
    """

    def __init__(self, *, seed: int, population_size: int, tournament_size: int) -> None:
        self._rng = random.Random(seed)
        self._uniform = RandomSampler(seed=seed)
        self._population_size = population_size
        self._tournament_size = tournament_size

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """All dimensions of past trials, including conditional ones; nothing before the population is full."""
        history = history_of(study)
        return dict(history.distributions) if len(history.complete) >= self._population_size else {}

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,  # noqa: ARG002 - Optuna's signature
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """A child of the tournament's winner. `sample_independent` draws dimensions that its parent does not have."""
        if not search_space:
            return {}
        history = history_of(study)
        known = history.view(KnownPoints)
        alive = history.complete[-self._population_size :]
        parent = self._winner(alive, study.directions)
        child = dict(parent.params)
        names = [name for name in parent.params if not parent.distributions[name].single()]
        for attempt in range(_MAX_TRIES if names else 0):
            child = dict(parent.params)
            for _ in range(1 + attempt // _TRIES_PER_DISTANCE):
                name = self._rng.choice(names)
                child[name] = self._mutated(child[name], parent.distributions[name])
            if child not in known:
                break
        return child

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw, in the first population and for dimensions that the parent does not have."""
        return self._uniform.sample_independent(study, trial, param_name, param_distribution)

    def _winner(self, alive: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> FrozenTrial:
        totals = _rank_sums([trial.values for trial in alive], directions)
        contestants = self._rng.sample(range(len(alive)), self._tournament_size)
        return alive[min(contestants, key=lambda index: (totals[index], -index))]  # the newest one on a tie

    def _mutated(self, value: Any, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, FloatDistribution):
            return _moved(float(value), distribution, self._rng.gauss(0.0, _REAL_STEP))
        return self._rng.choice([option for option in options_of(distribution) if option != value])


def _rank_sums(values: Sequence[Sequence[float]], directions: Sequence[StudyDirection]) -> list[int]:
    """Dense rank of each row, 0 for the best, summed over the objectives."""
    totals = [0] * len(values)
    for objective, direction in enumerate(directions):
        column = [row[objective] for row in values]
        order = sorted(set(column), reverse=direction == StudyDirection.MAXIMIZE)
        rank = {value: place for place, value in enumerate(order)}
        totals = [total + rank[value] for total, value in zip(totals, column, strict=True)]
    return totals


def _moved(value: float, distribution: FloatDistribution, step: float) -> float:
    """`value` moved by `step` ranges, reflected at the ends."""
    forward, back = (math.log, math.exp) if distribution.log else (float, float)
    low, high = forward(distribution.low), forward(distribution.high)
    place = abs((forward(value) - low) / (high - low) + step) % 2.0
    moved = back(low + (high - low) * min(place, 2.0 - place))
    return min(max(moved, distribution.low), distribution.high)
