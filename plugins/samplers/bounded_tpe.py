"""Optuna's TPE with a bounded number of trials, so that the cost of a suggestion does not grow with their number."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import (
    _split_complete_trials_multi_objective,
    default_gamma,
    default_gamma_multiobjective,
)
from optuna.search_space.group_decomposed import _SearchSpaceGroup
from optuna.trial import FrozenTrial

from plugins.samplers.choice_density import ChoiceDensity
from plugins.samplers.generators import return_generator, take_generator
from plugins.samplers.history import KnownPoints, history_of, number_of
from plugins.samplers.trial_columns import Rows, TrialColumns, internal_rows
from plugins.samplers.uniform import UniformSampler

Space = dict[str, BaseDistribution]
Density = ChoiceDensity | _ParzenEstimator


class BoundedTpe(BaseSampler):
    """A multivariate TPE sampler for one suggestion that takes running trials into account.

    It draws the same values as Optuna's sampler with `multivariate`, `group` and `constant_liar`, except that:

    - If more than `max_trials` trials have ended, the model uses the `NUM_BEST` best and the newest of the others.
    - It takes the best candidate that is not the point of a trial. Optuna's sampler takes the best candidate.
    - A running trial counts with its actual values only, not with drawn values of inactive conditional parameters.

    Constraints are ignored.
    """

    def __init__(self, *, seed: int, num_startup_trials: int, max_trials: int) -> None:
        self._num_startup_trials = num_startup_trials
        self._max_trials = max_trials
        self._generator = take_generator(seed)
        self._uniform = UniformSampler(seed=seed)

    def __del__(self) -> None:
        return_generator(self._generator)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the trials in the model; none before there are enough trials."""
        model = self._model(study, trial)
        return {name: found for space in model.spaces for name, found in space.items()} if model.is_ready else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The best candidate that is a new point; the best known point if all candidates are known."""
        model = self._model(study, trial)
        wanted = [{name: found for name, found in space.items() if name in search_space} for space in model.spaces]
        drawn = [self._draw(model, space) for space in wanted if space]
        best: dict[str, Any] = {}
        for candidates in drawn:
            best |= candidates.values(0)
        known = history_of(study).view(KnownPoints)
        for group, place in _by_loss(drawn):
            values = best | drawn[group].values(place)
            if values not in known and not any(past.params.items() <= values.items() for past in model.running):
                return values
        return best

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that no trial in the model had."""
        model = self._model(study, trial)
        if not model.is_ready:
            return self._uniform.sample_independent(study, trial, param_name, param_distribution)
        return self._draw(model, {param_name: param_distribution}).values(0)[param_name]

    def _model(self, study: Study, trial: FrozenTrial) -> "_Model":
        history = history_of(study)
        running = [past for past in history.running if past.number != trial.number and past.params]
        return history.view(_Models).model(
            study, running, num_startup_trials=self._num_startup_trials, max_trials=self._max_trials
        )

    def _draw(self, model: "_Model", space: Space) -> "_Candidates":
        good, bad = model.densities(space)
        samples = good.sample(self._generator, _default_sampler()._n_ei_candidates)
        gains = good.log_pdf(samples) - bad.log_pdf(samples)
        return _Candidates(space, samples, gains, (-gains).argsort(kind="stable"))


class _Candidates(NamedTuple):
    """Values drawn for some parameters."""

    space: Space
    samples: dict[str, NDArray[np.float64]]
    gains: NDArray[np.float64]
    """Log ratio of the densities among good trials and among the others, for each candidate."""
    best_first: NDArray[np.intp]

    def values(self, place: int) -> dict[str, Any]:
        """The values of the best candidate for `place` 0, of the second best for 1, ..."""
        index = self.best_first[place]
        return {name: found.to_external_repr(self.samples[name][index].item()) for name, found in self.space.items()}

    def losses(self) -> list[float]:
        """Difference of the gain of each candidate to the best gain, by place."""
        gains = self.gains[self.best_first]
        losses: list[float] = (gains[0] - gains).tolist()
        return losses


def _by_loss(drawn: Sequence[_Candidates]) -> list[tuple[int, int]]:
    """Pairs of a group of parameters and a place among its candidates, smallest loss first.

    The other groups use their best candidate.
    """
    losses = [
        (loss, group, place) for group, candidates in enumerate(drawn) for place, loss in enumerate(candidates.losses())
    ]
    return [(group, place) for _, group, place in sorted(losses)]


class _Model:
    """Densities of good and of other trials, created on demand."""

    def __init__(
        self, columns: TrialColumns, study: Study, running: list[FrozenTrial], *, is_ready: bool, max_trials: int
    ) -> None:
        self.running = running
        self.is_ready = is_ready
        """Whether there are enough trials."""
        self._columns = columns
        rows = columns.bounded(max_trials)
        self.spaces = _spaces(columns, rows)
        """Groups of parameters; each trial had all or none of the parameters of a group."""
        self._has_many_objectives = len(study.directions) > 1
        good = _good(columns, rows, study) if is_ready else rows[:0]
        is_good = np.isin(rows, good, assume_unique=True)
        self._good, self._others = rows[is_good], rows[~is_good]
        self._densities: dict[tuple[str, ...], tuple[Density, Density]] = {}

    def densities(self, space: Space) -> tuple[Density, Density]:
        """Densities of some parameters among good trials, and among other and running trials."""
        names = tuple(space)
        if names not in self._densities:
            good = self._observations(self._good, [], names)
            others = self._observations(self._others, self.running, names)
            weights = np.ones(len(good)) if self._has_many_objectives else None
            self._densities[names] = (_density(good, space, weights), _density(others, space))
        return self._densities[names]

    def _observations(self, rows: Rows, running: list[FrozenTrial], names: Sequence[str]) -> NDArray[np.float64]:
        """Values of the trials that have all of the parameters, by number; shape (trials, names)."""
        found = self._columns.parameters(rows, names)
        if running:
            numbers = np.append(self._columns.numbers(rows), [number_of(trial) for trial in running])
            found = np.concatenate([found, internal_rows(running, names)])[numbers.argsort(kind="stable")]
        return found[~np.isnan(found).any(axis=1)]


@cache
def _default_sampler() -> TPESampler:
    """A sampler with Optuna's default settings."""
    return TPESampler()


def _density(observations: NDArray[np.float64], space: Space, weights: NDArray[np.float64] | None = None) -> Density:
    settings = _default_sampler()._parzen_estimator_parameters
    choices = {name: found for name, found in space.items() if isinstance(found, CategoricalDistribution)}
    if len(choices) == len(space):
        return ChoiceDensity(observations, choices, settings, weights)
    return _ParzenEstimator(dict(zip(space, observations.T, strict=True)), space, settings, weights)


def _good(columns: TrialColumns, rows: Rows, study: Study) -> Rows:
    """The best complete trials by value and, if these are too few, the pruned trials with the most steps."""
    complete, pruned = columns.complete_and_pruned(rows)
    if len(study.directions) == 1:
        num_good = default_gamma(len(rows))
        good = columns.best_first(complete)[:num_good]
    else:
        num_good = default_gamma_multiobjective(len(rows))
        trials = columns.trials(complete)
        best, _ = _split_complete_trials_multi_objective(trials, study, min(num_good, len(trials)))
        ids = {id(trial) for trial in best}
        good = complete[np.array([id(trial) in ids for trial in trials], dtype=np.bool_)]
    return np.append(good, pruned[: num_good - len(good)])


def _spaces(columns: TrialColumns, rows: Rows) -> list[Space]:
    groups = _SearchSpaceGroup()
    for distributions in columns.spaces(rows):
        groups.add_distributions(distributions)
    found = [dict(sorted(space.items())) for space in groups.search_spaces]
    several = [{name: one for name, one in space.items() if not one.single()} for space in found]
    return [space for space in several if space]


class _Models(TrialColumns):
    """A view that keeps the last model, which serves all draws of one suggestion."""

    _model: _Model | None = None
    _model_key: tuple[int, ...] = ()

    def model(self, study: Study, running: list[FrozenTrial], *, num_startup_trials: int, max_trials: int) -> _Model:
        """The model of all ended trials and the given running trials."""
        # The last model keeps references to its running trials, so their ids are unique.
        key = (self.num_trials, num_startup_trials, max_trials, *map(id, running))
        if self._model is None or key != self._model_key:
            is_ready = self.num_trials >= num_startup_trials
            self._model = _Model(self, study, running, is_ready=is_ready, max_trials=max_trials)
            self._model_key = key
        return self._model
