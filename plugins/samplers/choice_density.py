"""Optuna's Parzen estimator for choices, with identical numbers in a third of the time."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimatorParameters


class ChoiceDensity:
    """A mixture of products of categorical distributions: one component per observation, and a uniform one.

    All observations of an option have the same probabilities. Optuna computes them for each observation.

    Args:
        observations: Index of the option, shape (trials, names).
        space: The choices by name.
        settings: Optuna's settings of the estimator.
        weights: Weights of the observations; by default those of `settings`.
    """

    def __init__(
        self,
        observations: NDArray[np.float64],
        space: Mapping[str, CategoricalDistribution],
        settings: _ParzenEstimatorParameters,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        num_observed = len(observations)
        self._names = tuple(space)
        if num_observed:
            given = settings.weights(num_observed) if weights is None else weights
            self._weights = np.append(given, [settings.prior_weight])
            self._weights /= self._weights.sum()
        else:
            self._weights = np.array([1.0])
        even = settings.prior_weight / (num_observed + 1)
        self._tables = [_probabilities(len(choice.choices), even) for choice in space.values()]
        # The table row of each component of the mixture. The last row is uniform.
        self._rows = [
            np.append(column, [len(table) - 1])
            for column, table in zip(observations.T.astype(np.intp), self._tables, strict=True)
        ]

    def sample(self, rng: np.random.RandomState, size: int) -> dict[str, NDArray[np.float64]]:
        """Draw random points: for each name, the indices of options."""
        parts = rng.choice(len(self._weights), p=self._weights, size=size)
        found = {}
        for name, table, rows in zip(self._names, self._tables, self._rows, strict=True):
            quantiles = rng.rand(size)
            cumulative = table[rows[parts]].cumsum(axis=-1)
            cumulative[:, -1] = 1.0
            found[name] = (cumulative < quantiles[:, None]).sum(axis=-1).astype(np.float64)
        return found

    def log_pdf(self, samples: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The logarithm of the density at the given points."""
        size = len(next(iter(samples.values())))
        parts = np.zeros((size, len(self._weights)))
        for name, table, rows in zip(self._names, self._tables, self._rows, strict=True):
            by_option = np.log(table).T[:, rows]
            parts += by_option[samples[name].astype(np.intp)]
        parts += np.log(self._weights)
        highest = parts.max(axis=1)
        found: NDArray[np.float64] = np.log(np.exp(parts - highest[:, None]).sum(axis=1)) + highest
        return found


def _probabilities(num_options: int, even: float) -> NDArray[np.float64]:
    """One row per observed option, then a uniform row; shape (options + 1, options)."""
    table = np.full((num_options + 1, num_options), even)
    table[np.arange(num_options), np.arange(num_options)] += 1
    table /= table.sum(axis=1, keepdims=True)
    return table
