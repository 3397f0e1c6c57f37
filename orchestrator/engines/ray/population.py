"""Population-based schedulers of Ray Tune, for trials of different topologies and for conditional dimensions."""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from orchestrator.engines.interfaces import Search
from orchestrator.engines.ray.generations import CopyStep, Generation
from orchestrator.engines.ray.pickling import NotPickled
from orchestrator.engines.seeds import seed_for
from search_spaces.dimensions import Choice, Dimension, Integer, Point, Real, Scalar, is_active

FACTORS = (0.8, 1.25)
"""Factors by which a number is multiplied if it is not resampled."""

MakeCopyTask = Callable[[dict[str, Any], Point, int], str]
"""Makes the task of a trial from its configuration, a new point and its number of copies, as JSON."""


class Population:
    """Decides for both schedulers which trial may copy which other trial, and how the copy continues.

    Args:
        search: The search.
        make_copy_task: Makes the trial's new task.
        quantile: Share of the trials that copy others, and share that is copied.
        resample: Probability that a changed value is drawn anew.
    """

    def __init__(self, search: Search, make_copy_task: MakeCopyTask, *, quantile: float, resample: float) -> None:
        self._search = search
        self._make_copy_task = make_copy_task
        self._quantile = quantile
        self._resample = resample

    def quantiles(self, scores: dict[Trial, float]) -> tuple[list[Trial], list[Trial]]:
        """The weakest and the strongest trials of each group that can load each other's weights."""
        lower: list[Trial] = []
        upper: list[Trial] = []
        for key in dict.fromkeys(trial.config["weights"] for trial in scores):
            group = sorted((trial for trial in scores if trial.config["weights"] == key), key=scores.__getitem__)
            count = min(math.ceil(len(group) * self._quantile), len(group) // 2)
            lower += group[:count]
            upper += group[len(group) - count :]
        return lower, upper

    def successor(self, trial: Trial, parent: Trial, point: Point, states: Mapping[Trial, Any]) -> dict[str, Any]:
        """The configuration of a trial that copies its parent's weights and continues with `point`.

        Args:
            trial: The trial that copies.
            parent: The trial that is copied.
            point: The new point.
            states: Ray's state of each trial.
        """
        before = Generation.model_validate(trial.config["generation"])
        changed = {
            name: (before.point.get(name), point.get(name))
            for name in sorted({*before.point, *point})
            if before.point.get(name) != point.get(name)
        }
        step = CopyStep(
            copied_from=parent.config["number"],
            own_epoch=states[trial].last_train_time,
            epoch=states[parent].last_train_time,
            changed=changed,
        )
        after = Generation(point=point, steps=(*before.steps, step))
        task = self._make_copy_task(trial.config, point, len(after.steps))
        return {**trial.config, "task": task, "generation": after.model_dump(mode="json")}

    def mixed(self, trial: Trial, parent: Trial) -> Point:
        """A trial's point with its parent's values of the changeable dimensions."""
        own = Generation.model_validate(trial.config["generation"]).point
        theirs = Generation.model_validate(parent.config["generation"]).point
        names = {dimension.name for dimension in self._search.changeable}
        kept = {name: value for name, value in own.items() if name not in names}
        return kept | {name: value for name, value in theirs.items() if name in names}

    def explored(self, point: Point, rng: random.Random) -> Point:
        """The point with each changeable value perturbed or resampled; conditions of dimensions still hold."""
        changed = dict(point)
        for dimension in self._search.changeable:
            if not is_active(dimension, changed):
                changed.pop(dimension.name, None)
            elif dimension.name not in changed or rng.random() < self._resample:
                changed[dimension.name] = drawn(dimension, rng)
            else:
                changed[dimension.name] = moved(dimension, changed[dimension.name], rng)
        return changed

    def rng(self, trial: Trial, parent: Trial) -> random.Random:
        """A generator for one copy, seeded by both trials and the number of copies before."""
        steps = len(trial.config["generation"]["steps"])
        return random.Random(seed_for("copy", trial.config["number"], parent.config["number"], steps))


def drawn(dimension: Dimension, rng: random.Random) -> Scalar:
    """A uniform draw on the dimension's scale."""
    if isinstance(dimension, Choice):
        return rng.choice(dimension.options)
    if isinstance(dimension, Integer) and not dimension.log:
        return rng.randrange(dimension.low, dimension.high + 1, dimension.step)
    share = rng.random()
    if dimension.log:
        value = dimension.low * math.exp(share * math.log(dimension.high / dimension.low))
    else:
        value = dimension.low + (dimension.high - dimension.low) * share
    return round(value) if isinstance(dimension, Integer) else value


def moved(dimension: Dimension, value: Scalar, rng: random.Random) -> Scalar:
    """A value close to `value`: a number times 0.8 or 1.25 within its bounds, or another option of a choice."""
    if isinstance(dimension, Choice):
        others = [option for option in dimension.options if option != value]
        return rng.choice(others) if others else value
    assert isinstance(value, int | float)
    near = float(value) * rng.choice(FACTORS)
    if isinstance(dimension, Real):
        return min(max(near, dimension.low), dimension.high)
    steps = max(1, round(abs(near - value) / dimension.step))
    stepped = int(value) + (steps if near > value else -steps) * dimension.step
    highest = dimension.low + (dimension.high - dimension.low) // dimension.step * dimension.step
    return min(max(stepped, dimension.low), highest)


class _Shared(NotPickled):
    """Overrides of Ray's `PopulationBasedTraining`."""

    _population: Population
    _trial_state: dict[Trial, Any]

    def _quantiles(self) -> tuple[list[Trial], list[Trial]]:
        scores = {
            trial: state.last_score
            for trial, state in self._trial_state.items()
            if state.last_score is not None and state.last_score == state.last_score and not trial.is_finished()
        }
        return self._population.quantiles(scores)

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper_quantile: Sequence[Trial], lower_quantile: Sequence[Trial]
    ) -> None:
        # Ray lets a trial copy one that has trained less; trials that take turns would then never finish.
        so_far = self._trial_state[trial].last_train_time
        fitting = [
            other
            for other in upper_quantile
            if other.config["weights"] == trial.config["weights"] and self._trial_state[other].last_train_time >= so_far
        ]
        if not fitting:
            lower_quantile = []
        state = random.getstate()  # Ray draws the parent with the global generator
        random.seed(seed_for("parent", trial.config["number"], trial.last_result.get("epoch", 0)))
        try:
            super()._checkpoint_or_exploit(trial, tune_controller, fitting, lower_quantile)  # type: ignore[misc]
        finally:
            random.setstate(state)


class PointPopulation(_Shared, PopulationBasedTraining):
    """PBT on points of our dimensions."""

    def __init__(self, population: Population, **options: Any) -> None:
        super().__init__(custom_explore_fn=lambda config: config, log_config=False, **options)
        self._population = population

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        population = self._population
        point = population.explored(population.mixed(trial, trial_to_clone), population.rng(trial, trial_to_clone))
        return population.successor(trial, trial_to_clone, point, self._trial_state), {}


class PointBandits(_Shared, PB2):
    """PB2 on the unconditional real numbers among our dimensions; other values are those of the parent.

    Ray's code reads the numbers from a trial's configuration, where `numbers_of` puts them.
    """

    def __init__(self, population: Population, numbers: Sequence[Real], **options: Any) -> None:
        self._numbers = numbers
        bounds = {one.name: [_scaled(one, one.low), _scaled(one, one.high)] for one in numbers}
        super().__init__(hyperparam_bounds=bounds, log_config=False, **options)
        self._population = population

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from scikit-learn, about the kernel bounds that Ray sets
            found, _ = super()._get_new_config(trial, trial_to_clone)
        point = self._population.mixed(trial, trial_to_clone)
        for dimension in self._numbers:
            value = float(found[dimension.name])
            point[dimension.name] = min(max(math.exp(value) if dimension.log else value, dimension.low), dimension.high)
        config = self._population.successor(trial, trial_to_clone, point, self._trial_state)
        return {**config, **numbers_of(point, self._numbers)}, {}


def bandit_numbers(search: Search) -> list[Real]:
    """The dimensions that PB2 changes."""
    return [one for one in search.changeable if isinstance(one, Real) and one.when is None]


def numbers_of(point: Point, numbers: Sequence[Real]) -> dict[str, float]:
    """The entries of a trial's configuration that PB2 reads: values on the dimensions' scale."""
    return {one.name: _scaled(one, float(str(point[one.name]))) for one in numbers}


def _scaled(dimension: Real, value: float) -> float:
    return math.log(value) if dimension.log else value
