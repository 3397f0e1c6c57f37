"""The suggester of both engines: an in-memory Optuna study, rebuilt from our trial rows.

`OptunaSuggester._draw` replaces `Study.ask` and `Trial.suggest_...`; its docstring says what that saves.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.engines.interfaces import KnownResult, Objective, Suggestion
from orchestrator.engines.optuna_space import OptunaSpace, as_scalar, only_value
from orchestrator.engines.optuna_storage import TrialStorage
from orchestrator.engines.seeds import seed_for
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.protocols import Enumeration, FinalChoice
from plugins.samplers.history import TRIAL_NUMBER
from search_spaces.dimensions import Dimension, Point, is_active
from search_spaces.recipes import PluginChoice

optuna.logging.set_verbosity(optuna.logging.ERROR)

_SAMPLER_TRIES = 10
_RANDOM_TRIES = 2000


class _Running(NamedTuple):
    """A trial that has not ended."""

    trial_id: int
    """Id of the trial in the storage."""
    point: Point


class OptunaSuggester:
    """Suggests points of a space with an Optuna sampler.

    Each suggestion uses a new sampler, seeded with the stage's seed, the trial's number and the number of the try. It
    sees the finished and the running trials, so the same trials lead to the same next suggestion in every process. A
    point is suggested only if it is new and `problem` accepts it. If the sampler finds none in a few tries, uniform
    draws are tried.

    Args:
        dimensions: Dimensions of the space, parents before the dimensions that depend on them.
        objectives: Metrics to optimise.
        sampler: Name and settings of the sampler.
        seed: The stage's seed.
        first: Points to suggest before any other, in this order. Those that trials have already tried are left out. A
            point that occurs several times is tried as often, by trials with different seeds.
        known: Results of earlier searches of the same space, which samplers see as trials with negative numbers.
        problem: Gives the reason why a point must not be tried, or `None`.
        final_number: Number of the trial reserved for the sampler's final choice, if it makes one that is new. It is
            suggested after all other trials have ended. `None` if there is no such trial.

    Raises:
        ValueError: The sampler does not support these dimensions.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        *,
        objectives: Sequence[Objective],
        sampler: PluginChoice,
        seed: int,
        first: Sequence[Point] = (),
        known: Sequence[KnownResult] = (),
        problem: Callable[[Point], str | None] = lambda _: None,
        final_number: int | None = None,
    ) -> None:
        self._space = OptunaSpace(dimensions)
        self._objectives = tuple(objectives)
        self._sampler = registry.create("samplers", sampler.name, sampler.settings)
        unfit = self._sampler.problem(self._space.dimensions)
        if unfit is not None:
            raise ValueError(unfit)
        self._fallback = registry.create("samplers", "random")
        self._seed = seed
        self._first = [(_key(point), point) for point in first]
        self._problem = problem
        self._final_number = final_number
        self._points: Iterator[Point] | None = None
        if isinstance(self._sampler, Enumeration):
            self._points = self._sampler.points(self._space.dimensions)
        self._storage = TrialStorage()
        self._study = optuna.create_study(
            storage=self._storage, directions=[objective.direction for objective in objectives]
        )
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._running: dict[int, _Running] = {}
        self._seen = {key for key, _ in self._first}
        for number, result in enumerate(known, start=-len(known)):
            past = self._frozen(number, result.point, {}, TrialState.COMPLETE, list(result.values))
            self._storage.add(self._study_id, past)
        self._shortage: str | None = None

    @property
    def shortage(self) -> str | None:
        """Why no further point was found; `None` if one was found whenever asked for."""
        return self._shortage

    def ask(self, number: int) -> Suggestion | None:
        """The next new point; `None` if the whole space was tried, or no new valid point was found."""
        if self._first:
            return self._suggestion(number, self._first[0][1])
        self._shortage = None
        if self._space.num_points is not None and len(self._seen) >= self._space.num_points:
            self._shortage = f"its search space has only {self._space.num_points} points"
            return None
        if number == self._final_number:
            if self._running:
                return None  # the engine asks again after the running trials have ended
            choice = self.final_choice()
            if choice is not None and self._is_new(choice):
                return self._suggestion(number, choice)
        if self._points is not None:
            self._shortage = "the sampler has no further point"
            return next((self._suggestion(number, point) for point in self._points if self._is_new(point)), None)
        trial_id = self._storage.create_new_trial(self._study_id)
        for attempt in range(_SAMPLER_TRIES + _RANDOM_TRIES):
            plugin = self._sampler if attempt < _SAMPLER_TRIES else self._fallback
            sampler = plugin.build(seed_for(self._seed, number, attempt), study_seed=self._seed)
            trial = self._draw(sampler, trial_id)
            key = _key(trial.params)
            if key not in self._seen and self._problem(trial.params) is None:
                self._seen.add(key)
                self._running[number] = _Running(trial_id, trial.params)
                trial.user_attrs = {TRIAL_NUMBER: number}
                self._storage.replace(trial_id, trial)
                return Suggestion(dict(trial.params), dict(trial.system_attrs))
            self._storage.clear(trial_id)
        tries = _SAMPLER_TRIES + _RANDOM_TRIES
        self._shortage = f"no further point that is new and allowed was found in {tries} draws"
        # A failed trial without a number is invisible to samplers, so a rebuilt study that lacks it is the same.
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return None

    def expect(self, trial: TrialRecord) -> None:
        """Note that a trial of an earlier execution runs again; its point is not suggested."""
        self._begin(trial.number, trial.point, trial.sampler_state)

    def final_choice(self) -> Point | None:
        """The sampler's choice after the trials before `final_number`; `None` if it makes none."""
        if self._final_number is None or not isinstance(self._sampler, FinalChoice):
            return None
        return self._sampler.final_choice(self._study, study_seed=self._seed, num_trials=self._final_number)

    def tell(self, trial: TrialRecord) -> None:
        """Learn a finished trial. The point of a failed one is not tried again; the sampler may learn from it.

        A trial that a scheduler stopped becomes a pruned trial of Optuna's: its value is that of a smaller budget.
        """
        running = self._running.pop(trial.number, None)
        if running is None or running.point != trial.point:
            self._note(trial.point)
        values = [trial.metrics[objective.metric] for objective in self._objectives] if trial.is_usable else None
        state = TrialState.COMPLETE
        steps: dict[int, float] = {}
        if values is None or not all(map(math.isfinite, values)):
            state, values = TrialState.FAIL, None
        elif trial.rung is not None:
            state, steps = TrialState.PRUNED, {trial.rung: values[0]}
        if running is None:
            frozen = self._frozen(trial.number, trial.point, trial.sampler_state, state, values, steps)
            self._storage.add(self._study_id, frozen)
            return
        for step, value in steps.items():
            self._storage.set_trial_intermediate_value(running.trial_id, step, value)
        self._storage.set_trial_state_values(running.trial_id, state, values)

    def _note(self, point: Point) -> None:
        """Note that a trial has this point."""
        key = _key(point)
        self._seen.add(key)
        place = next((place for place, (first, _) in enumerate(self._first) if first == key), None)
        if place is not None:
            del self._first[place]

    def _is_new(self, point: Point) -> bool:
        return _key(point) not in self._seen and self._problem(point) is None

    def _suggestion(self, number: int, point: Point) -> Suggestion:
        """Suggest a point that no sampler drew."""
        self._begin(number, point, {})
        return Suggestion(point, {})

    def _begin(self, number: int, point: Point, sampler_state: dict[str, Any]) -> None:
        self._note(point)
        frozen = self._frozen(number, point, sampler_state, TrialState.RUNNING)
        self._running[number] = _Running(self._storage.add(self._study_id, frozen), point)

    def _draw(self, sampler: BaseSampler, trial_id: int) -> FrozenTrial:
        """Draw a point as `Study.ask` and `Trial.suggest_...` do, without writing it into the storage.

        Optuna searches all trials for one that was enqueued, and copies the trial for each value. Without that, and
        with `TrialStorage`, a suggestion of 12 values takes about 1/5 of the CPU time with the random sampler, and 3/4
        with TPE (`python -m benchmarks.shortcuts`).
        """
        study, storage = self._study, self._storage
        study.sampler = sampler
        study._thread_local.cached_all_trials = None  # the sampler's view of all trials, valid for one suggestion
        trial = storage.get_trial(trial_id)
        sampler.before_trial(study, trial)
        space = sampler.infer_relative_search_space(study, trial)
        relative = sampler.sample_relative(study, trial, space)
        trial = copy.copy(storage.get_trial(trial_id))
        point: Point = {}
        trial.params, trial.distributions = point, {}
        for dimension, name, distribution, is_single in self._space.sampled:
            if dimension.when is not None and not is_active(dimension, point):
                continue
            if name in relative and distribution._contains(distribution.to_internal_repr(relative[name])):
                value = relative[name]
            elif is_single:
                value = only_value(dimension)
            else:
                value = sampler.sample_independent(study, trial, name, distribution)
            point[name] = as_scalar(dimension, value)
            trial.distributions[name] = distribution
        return trial

    def _frozen(
        self,
        number: int,
        point: Point,
        sampler_state: dict[str, Any],
        state: TrialState,
        values: list[float] | None = None,
        steps: dict[int, float] | None = None,
    ) -> FrozenTrial:
        return FrozenTrial(
            number=-1,  # the storage sets number and id
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=None,  # times are in the rows
            datetime_complete=None,
            params=dict(point),
            distributions=self._space.distributions_of(point),
            user_attrs={TRIAL_NUMBER: number},
            system_attrs=dict(sampler_state),
            intermediate_values=steps or {},
        )


def _key(point: Point) -> str:
    """A key of a point that distinguishes 1, 1.0 and true."""
    return repr(sorted(point.items()))
