"""Our samplers draw the same values as Optuna's, from a cached history; the model of TPE has a bounded size."""

import random
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from plugins.registry import create
from plugins.samplers.bounded_tpe import BoundedTpe
from plugins.samplers.choice_density import ChoiceDensity
from plugins.samplers.history import TRIAL_NUMBER, finished_trials, history_of
from plugins.samplers.nsga2_ordered import GENERATION, PARENTS, OrderedNsga2
from plugins.samplers.trial_columns import NUM_BEST, TrialColumns
from tests.rounding import difference_bound

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

MAX_TRIALS = 300
SPACE: dict[str, BaseDistribution] = {
    "choice": CategoricalDistribution(("a", None, True, 3, 0.5)),
    "real": FloatDistribution(1e-4, 1e-1, log=True),
    "step": IntDistribution(1, 9, step=2),
    "count": IntDistribution(1, 64, log=True),
}


def finished(number: int, value: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    trial = create_trial(
        params={"real": 1e-3 + 1e-5 * (number % 97)},
        distributions={"real": SPACE["real"]},
        values=[value] if state == TrialState.COMPLETE else None,
        state=state,
    )
    trial.number = number
    return trial


@pytest.mark.parametrize("seed", range(5))
def test_the_random_sampler_draws_what_optunas_draws(seed: int) -> None:
    def draws(sampler: optuna.samplers.BaseSampler) -> list[dict]:
        study = optuna.create_study(sampler=sampler)
        return [study.ask(SPACE).params for _ in range(4)]

    ours = create("samplers", "random")
    assert draws(ours.build(seed, study_seed=0)) == draws(RandomSampler(seed=seed))
    two = [ours.build(seed, study_seed=0), ours.build(seed + 1, study_seed=0)]  # both alive: no generator is shared
    expected = [RandomSampler(seed=seed), RandomSampler(seed=seed + 1)]
    for _ in range(2):
        assert [draws(one) for one in two] == [draws(one) for one in expected]


@pytest.mark.parametrize("seed", range(3))
def test_tpe_suggests_what_optunas_suggests_while_all_trials_are_looked_at(seed: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        method = trial.suggest_categorical("method", ("plain", "paced"))
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        start = trial.suggest_float("start", 0.1, 0.5) if method == "paced" else 0.0
        return rate + start

    def suggested(sampler: BaseSampler) -> list[dict]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=25)
        return [trial.params for trial in study.trials]

    assert suggested(BoundedTpe(seed=seed, num_startup_trials=5, max_trials=1000)) == suggested(optunas_tpe(seed))


@pytest.mark.parametrize("directions", [["minimize"], ["maximize"], ["maximize", "minimize"]])
def test_tpe_suggests_what_optunas_suggests_among_trials_that_run_were_stopped_or_failed(directions: list[str]) -> None:
    ours = suggested_side_by_side(lambda seed: BoundedTpe(seed=seed, num_startup_trials=5, max_trials=1000), directions)
    assert ours == suggested_side_by_side(optunas_tpe, directions)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_tpe_suggests_what_optunas_suggests_of_choices_only(directions: list[str]) -> None:
    space: dict[str, BaseDistribution] = {
        f"c{size}": CategoricalDistribution(tuple(range(size))) for size in (1, 2, 3, 9, 40, 300)
    }
    ours = suggested_side_by_side(
        lambda seed: BoundedTpe(seed=seed, num_startup_trials=5, max_trials=1000), directions, space
    )
    assert ours == suggested_side_by_side(optunas_tpe, directions, space)


@pytest.mark.parametrize("num_observed", [0, 1, 30, 500])
def test_the_density_of_choices_is_optunas_number_for_number(num_observed: int) -> None:
    space = {f"c{size}": CategoricalDistribution(tuple(range(size))) for size in (2, 5, 17, 130)}
    rng = np.random.RandomState(3)
    rows = np.array([[rng.randint(len(one.choices)) for one in space.values()] for _ in range(num_observed)])
    rows = rows.reshape(num_observed, len(space)).astype(np.float64)
    settings = TPESampler()._parzen_estimator_parameters
    for weights in (None, np.ones(num_observed)):
        ours = ChoiceDensity(rows, space, settings, weights)
        optunas = _ParzenEstimator(dict(zip(space, rows.T, strict=True)), dict(space), settings, weights)
        samples = ours.sample(np.random.RandomState(5), 24)
        expected = optunas.sample(np.random.RandomState(5), 24)
        assert all(np.array_equal(samples[name], expected[name]) for name in space)
        np.testing.assert_allclose(ours.log_pdf(samples), optunas.log_pdf(samples), rtol=difference_bound(130))


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_nsga2_suggests_what_optunas_suggests_with_parents_by_number(directions: list[str]) -> None:
    class ByNumber(NSGAIISampler):
        def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
            return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)

    ours = suggested_side_by_side(lambda seed: OrderedNsga2(seed=seed, population_size=6), directions)
    assert ours == suggested_side_by_side(lambda seed: ByNumber(seed=seed, population_size=6), directions)


def test_nsga2_goes_on_after_many_generations_whose_parents_no_trial_noted() -> None:
    study = optuna.create_study(sampler=OrderedNsga2(seed=0, population_size=2))
    for number in range(1200):
        trial = finished(number, float(number))
        trial.system_attrs = {GENERATION: number // 2}
        study.add_trial(trial)
    study.ask(SPACE)
    assert study.trials[-1].system_attrs == {GENERATION: 600, PARENTS: [0, 1]}  # the best of all


def optunas_tpe(seed: int) -> TPESampler:
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=5)


def suggested_side_by_side(
    make: Callable[[int], BaseSampler], directions: list[str], space: dict[str, BaseDistribution] | None = None
) -> list[dict]:
    """Suggestions of a sampler made anew for each, while three trials run; they end in no particular order."""
    study = optuna.create_study(directions=directions)
    order, scores, running, points = random.Random(0), random.Random(1), [], []
    for number in range(60):
        study.sampler = make(number)
        running.append(study.ask(space or SPACE))
        points.append(running[-1].params)
        if len(running) <= 3:
            continue
        trial = running.pop(order.randrange(len(running)))
        if trial.number % 7 == 3:
            study.tell(trial, state=TrialState.FAIL)
            continue
        values = [scores.random(), scores.random()]
        if trial.number % 5 == 1 and len(directions) == 1:
            trial.report(values[0], step=trial.number % 3)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, values[: len(directions)])
    return points


def test_tpe_draws_parameters_that_no_trial_had_as_optunas_does() -> None:
    def suggested(sampler: BaseSampler) -> dict:
        study = optuna.create_study(sampler=sampler)
        for number in range(8):
            study.add_trial(finished(number, float(number)))
        return study.ask(SPACE).params

    ours = suggested(BoundedTpe(seed=3, num_startup_trials=5, max_trials=1000))
    assert ours == suggested(optunas_tpe(3))
    assert ours.keys() == SPACE.keys()


def test_tpe_passes_over_known_points_to_the_next_best_candidate() -> None:
    space: dict[str, BaseDistribution] = {name: CategoricalDistribution(("a", "b", "c")) for name in "wxyz"}

    def num_different(make: Callable[[int], BaseSampler]) -> int:
        study = optuna.create_study()
        for number in range(60):
            study.sampler = make(number)
            trial = study.ask(space)
            study.tell(trial, sum(value != "b" for value in trial.params.values()))
        return len({tuple(trial.params.items()) for trial in study.trials})

    assert num_different(optunas_tpe) < 45
    assert (
        num_different(lambda seed: BoundedTpe(seed=seed, num_startup_trials=5, max_trials=1000)) > 55
    )  # of 81; the first are random


def columns(trials: list[FrozenTrial], *directions: StudyDirection) -> TrialColumns:
    made = TrialColumns(directions)
    for trial in trials:
        made.take(trial)
    return made


def test_few_trials_are_all_looked_at_by_number_in_whichever_order_they_ended() -> None:
    trials = [finished(number, 0.0) for number in range(MAX_TRIALS)]
    random.Random(0).shuffle(trials)
    made = columns(trials, StudyDirection.MINIMIZE)
    assert made.numbers(made.bounded(MAX_TRIALS)).tolist() == list(range(MAX_TRIALS))


@pytest.mark.parametrize(("direction", "sign"), [(StudyDirection.MINIMIZE, 1.0), (StudyDirection.MAXIMIZE, -1.0)])
def test_of_many_the_best_and_the_newest_are_kept_in_order(direction: StudyDirection, sign: float) -> None:
    trials = [finished(number, sign * number) for number in range(3 * MAX_TRIALS)]  # the first ones are the best
    random.Random(0).shuffle(trials)
    made = columns(trials, direction)
    newest = range(2 * MAX_TRIALS + NUM_BEST, 3 * MAX_TRIALS)
    assert made.numbers(made.bounded(MAX_TRIALS)).tolist() == [*range(NUM_BEST), *newest]


def test_the_best_of_each_objective_are_kept() -> None:
    both = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    trials = [
        create_trial(params={"real": 0.01}, distributions={"real": SPACE["real"]}, values=[float(number)] * 2)
        for number in range(3 * MAX_TRIALS)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    made = columns(trials, *both)
    assert made.numbers(made.bounded(MAX_TRIALS))[:NUM_BEST].tolist() == [
        *range(NUM_BEST // 2),
        *range(2 * MAX_TRIALS + NUM_BEST // 2, 2 * MAX_TRIALS + NUM_BEST),
    ]


def test_a_history_has_no_refused_suggestions_and_knows_who_runs() -> None:
    study = optuna.create_study()
    failed, running, done, refused = (study.ask(SPACE) for _ in range(4))
    for number, trial in ((2, failed), (1, running), (0, done)):
        trial.set_user_attr(TRIAL_NUMBER, number)
    study.tell(done, 1.0)
    assert [trial.number for trial in history_of(study).running] == [running.number, failed.number, refused.number]
    study.tell(failed, state=TrialState.FAIL)
    study.tell(refused, state=TrialState.FAIL)
    assert [trial.number for trial in finished_trials(study)] == [done.number, failed.number]
    assert [trial.number for trial in finished_trials(study, num_trials=2)] == [done.number]
    history = history_of(study)
    assert (history.num_ended, [trial.number for trial in history.running]) == (2, [running.number])
