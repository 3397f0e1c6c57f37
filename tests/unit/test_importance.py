"""The importance of a search's dimensions."""

from orchestrator.engines.importance import MIN_TRIALS, importances
from orchestrator.engines.interfaces import Objective
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Choice, Real
from tests.fakes import make_trial

OBJECTIVE = Objective("val_accuracy", "maximize")
DIMENSIONS = (Real(name="recipe.x", low=0.0, high=1.0), Choice(name="recipe.noise", options=("a", "b", "c")))


def trials(count: int, *, equal: bool = False) -> list[TrialRecord]:
    """Trials whose result depends on x alone."""
    found = []
    for number in range(count):
        x = (number * 7 % count) / count
        trial = make_trial(number, metrics={"val_accuracy": 0.5 if equal else x})
        found.append(trial.model_copy(update={"point": {"recipe.x": x, "recipe.noise": "abc"[number % 3]}}))
    return found


def test_the_dimension_that_decides_has_the_largest_share() -> None:
    shares = importances(DIMENSIONS, trials(40), OBJECTIVE)
    assert next(iter(shares)) == "recipe.x"
    assert shares["recipe.x"] > 0.8
    assert abs(sum(shares.values()) - 1) < 1e-9


def test_few_or_equal_trials_give_no_importance() -> None:
    assert importances(DIMENSIONS, trials(MIN_TRIALS - 1), OBJECTIVE) == {}
    assert importances(DIMENSIONS, trials(40, equal=True), OBJECTIVE) == {}


def test_only_trials_that_ran_to_their_end_count() -> None:
    stopped = [trial.model_copy(update={"state": "stopped"}) for trial in trials(40)]
    assert importances(DIMENSIONS, stopped, OBJECTIVE) == {}
