"""Complete and pruned trials as columns of numbers, and the selection of trials for a model."""

from bisect import insort
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from plugins.samplers.history import number_of

NUM_BEST = 100
"""Number of best trials to keep, divided between the objectives. With one objective, TPE uses at most 25 of them."""

Number = TypeVar("Number", bound=np.generic)
Rows = NDArray[np.intp]
"""Row indices of trials in the columns."""


class TrialColumns:
    """A view of the complete and pruned trials, one row per trial, in the order in which they ended.

    Values are signed so that lower is better for each objective.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self.directions = tuple(directions)
        self._signs = np.array([-1.0 if one == StudyDirection.MAXIMIZE else 1.0 for one in directions])
        self._best: list[list[tuple[float, int, int]]] = [[] for _ in directions]  # value, number, row
        self._signatures: dict[tuple[str, ...], int] = {}
        self._spaces: list[dict[str, BaseDistribution]] = []
        self._columns: dict[str, int] = {}
        self._trials: list[FrozenTrial] = []
        self._numbers = np.empty(0, dtype=np.int64)
        self._signature = np.empty(0, dtype=np.int64)
        self._is_complete = np.empty(0, dtype=np.bool_)
        self._values = np.empty((0, len(directions)))
        self._progress = np.empty((0, 2))  # for pruned trials: minus the last step, and its value
        self._parameters = np.empty((0, 0))  # Optuna's internal representation; NaN if missing

    def take(self, trial: FrozenTrial) -> None:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return
        row = len(self._trials)
        self._grow(row + 1, trial.distributions)
        self._trials.append(trial)
        number = number_of(trial)
        self._numbers[row] = number
        self._signature[row] = self._signature_of(trial.distributions)
        self._is_complete[row] = trial.state == TrialState.COMPLETE
        for name, value in _internal(trial.params, trial.distributions).items():
            self._parameters[row, self._columns[name]] = value
        if trial.values is not None:
            self._values[row] = self._signs * trial.values
            for best, value in zip(self._best, self._values[row].tolist(), strict=True):
                insort(best, (value, number, row))
                del best[NUM_BEST // len(self._best) :]
        self._progress[row] = self._last_step(trial)

    @property
    def num_trials(self) -> int:
        return len(self._trials)

    def trials(self, rows: Rows) -> list[FrozenTrial]:
        return [self._trials[row] for row in rows.tolist()]

    def numbers(self, rows: Rows) -> NDArray[np.int64]:
        return self._numbers[rows]

    def bounded(self, max_trials: int) -> Rows:
        """All rows, or if there are more than `max_trials`, the `NUM_BEST` best and the newest others; by number.

        Args:
            max_trials: Maximum number of rows, more than `NUM_BEST`.
        """
        num_rows = len(self._trials)
        by_number = self._numbers[:num_rows].argsort(kind="stable")
        if num_rows <= max_trials:
            return by_number
        is_kept = np.zeros(num_rows, dtype=np.bool_)
        is_kept[[row for best in self._best for _, _, row in best]] = True
        newest_first = by_number[::-1]
        num_others = (~is_kept[newest_first]).cumsum()
        place = int(num_others.searchsorted(max_trials - is_kept.sum()))
        is_kept[newest_first[: place + 1]] = True
        return by_number[is_kept[by_number]]

    def complete_and_pruned(self, rows: Rows) -> tuple[Rows, Rows]:
        """Complete trials by number, and pruned trials sorted by most steps, then by best value."""
        is_complete = self._is_complete[rows]
        pruned = rows[~is_complete]
        steps, values = self._progress[pruned].T
        return rows[is_complete], pruned[np.lexsort((values, steps))]

    def best_first(self, rows: Rows) -> Rows:
        """Rows sorted by the first objective, best first. Ties keep the order of `rows`."""
        order: Rows = self._values[rows, 0].argsort(kind="stable")
        return rows[order]

    def spaces(self, rows: Rows) -> list[dict[str, BaseDistribution]]:
        """The distinct sets of parameters of the trials, in the order of their first occurrence."""
        signatures, places = np.unique(self._signature[rows], return_index=True)
        return [self._spaces[signature] for signature in signatures[places.argsort()].tolist()]

    def parameters(self, rows: Rows, names: Sequence[str]) -> NDArray[np.float64]:
        """Optuna's internal representation of parameters, NaN if a trial lacks one; shape (rows, names)."""
        found = np.full((len(rows), len(names)), np.nan)
        for place, name in enumerate(names):
            if name in self._columns:
                found[:, place] = self._parameters[rows, self._columns[name]]
        return found

    def _signature_of(self, distributions: Mapping[str, BaseDistribution]) -> int:
        names = tuple(distributions)
        if names not in self._signatures:
            self._signatures[names] = len(self._spaces)
            self._spaces.append(dict(distributions))
        return self._signatures[names]

    def _last_step(self, trial: FrozenTrial) -> tuple[float, float]:
        if not trial.intermediate_values:
            return 1.0, 0.0
        step, value = max(trial.intermediate_values.items())
        return -float(step), float("inf") if np.isnan(value) else float(self._signs[0] * value)

    def _grow(self, num_rows: int, distributions: Mapping[str, BaseDistribution]) -> None:
        for name in distributions:
            self._columns.setdefault(name, len(self._columns))
        capacity, width = self._parameters.shape
        if num_rows <= capacity and len(self._columns) <= width:
            return
        capacity = max(capacity, 64) if num_rows <= capacity else max(64, 2 * capacity)
        self._numbers = _enlarged(self._numbers, (capacity,))
        self._signature = _enlarged(self._signature, (capacity,))
        self._is_complete = _enlarged(self._is_complete, (capacity,))
        self._values = _enlarged(self._values, (capacity, len(self._signs)))
        self._progress = _enlarged(self._progress, (capacity, 2))
        parameters = np.full((capacity, len(self._columns)), np.nan)
        parameters[: self._parameters.shape[0], :width] = self._parameters
        self._parameters = parameters


def internal_rows(trials: Sequence[FrozenTrial], names: Sequence[str]) -> NDArray[np.float64]:
    """Like `TrialColumns.parameters`, for trials that are not in the columns."""
    found = [_internal(trial.params, trial.distributions) for trial in trials]
    rows = [[values.get(name, np.nan) for name in names] for values in found]
    return np.array(rows, dtype=np.float64).reshape(len(trials), len(names))


def _internal(values: Mapping[str, object], distributions: Mapping[str, BaseDistribution]) -> dict[str, float]:
    return {name: found.to_internal_repr(values[name]) for name, found in distributions.items()}


def _enlarged(array: NDArray[Number], shape: tuple[int, ...]) -> NDArray[Number]:
    larger = np.empty(shape, dtype=array.dtype)
    larger[: len(array)] = array
    return larger
