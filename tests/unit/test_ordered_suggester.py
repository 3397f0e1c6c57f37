"""Suggestions of concurrent trials do not depend on which of them ends first."""

import random

import pytest

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.ordered_suggester import OrderedSuggester
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Choice, Point, Real
from search_spaces.recipes import PluginChoice
from tests.fakes import make_trial

SPACE = (Real(name="x", low=0.0, high=1.0), Choice(name="y", options=("a", "b", "c")))
NUM_TRIALS = 14


def make(lookahead: int = 4, **settings: object) -> OrderedSuggester:
    inner = OptunaSuggester(
        SPACE,
        objectives=(Objective("score", "maximize"),),
        sampler=PluginChoice(name="tpe", settings={"num_startup_trials": 3}),
        seed=5,
        **settings,
    )
    return OrderedSuggester(inner, lookahead=lookahead)


def ended(number: int, point: Point) -> TrialRecord:
    score = -((float(point["x"]) - 0.3) ** 2) - (point["y"] != "b")
    return make_trial(number, point=point, metrics={"score": score})


def run(num_workers: int, order_seed: int, *, earlier: tuple[Point, ...] = ()) -> list[Point]:
    """Run a search with workers whose trials end in a random order; `earlier` trials ended before."""
    suggester, order = make(), random.Random(order_seed)
    points: dict[int, Point] = dict(enumerate(earlier))
    for number, point in points.items():
        suggester.tell(ended(number, point))
    running: list[int] = []
    while len(points) < NUM_TRIALS or running:
        while len(running) < num_workers and len(points) < NUM_TRIALS:
            suggestion = suggester.ask(len(points))
            if suggestion is None:
                assert running, "nothing runs, so there must be a suggestion"
                break
            running.append(len(points))
            points[len(points)] = suggestion.point
        number = running.pop(order.randrange(len(running)))
        suggester.tell(ended(number, points[number]))
    return [points[number] for number in range(NUM_TRIALS)]


def test_the_order_of_ends_does_not_change_the_suggestions() -> None:
    expected = run(1, 0)
    assert all(run(num_workers, seed) == expected for num_workers in (2, 4) for seed in range(5))


def test_the_samplers_results_are_used_as_soon_as_they_are_due() -> None:
    suggester, plain = make(lookahead=2), make(lookahead=2)
    for number in range(3):
        for each in (suggester, plain):
            assert each.ask(number) is not None
    assert suggester.ask(3) is None  # trial 0 has not ended
    suggester.tell(ended(0, {"x": 0.1, "y": "a"}))
    assert suggester.ask(3) is not None


def test_a_search_that_was_interrupted_continues_with_the_same_suggestions() -> None:
    expected = run(2, 0)
    assert run(2, 3, earlier=tuple(expected[:8])) == expected


def test_a_small_space_is_used_up_and_nothing_waits_forever() -> None:
    inner = OptunaSuggester(
        (Choice(name="y", options=("a", "b", "c")),),
        objectives=(Objective("score", "maximize"),),
        sampler=PluginChoice(name="random"),
        seed=1,
    )
    suggester = OrderedSuggester(inner, lookahead=4)
    for number in range(3):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        suggester.tell(make_trial(number, point=suggestion.point, metrics={"score": 1.0}))
    assert suggester.ask(3) is None
    assert suggester.shortage == "its search space has only 3 points"


@pytest.mark.parametrize("num_ended", [0, 4])
def test_a_final_choice_comes_after_all_results(num_ended: int) -> None:
    suggester = OrderedSuggester(
        OptunaSuggester(
            (Choice(name="y", options=tuple("abcdefgh")),),
            objectives=(Objective("score", "maximize"),),
            sampler=PluginChoice(name="reinforce"),
            seed=1,
            final_number=4,
        ),
        lookahead=4,
    )
    points = {}
    for number in range(4):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        points[number] = suggestion.point
    for number in range(num_ended):
        suggester.tell(make_trial(number, point=points[number], metrics={"score": float(number)}))
    assert (suggester.ask(4) is None) == (num_ended == 0)
