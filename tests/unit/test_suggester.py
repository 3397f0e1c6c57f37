"""The suggester: refused calls and stored state."""

import pytest

from orchestrator.engines.interfaces import KnownResult, Objective
from orchestrator.engines.suggester import OptunaSuggester
from plugins.registry import available
from plugins.samplers.history import history_of
from search_spaces.dimensions import Choice, Dimension, Point, Real
from search_spaces.recipes import PluginChoice
from tests.fakes import make_trial

DIMENSIONS: tuple[Dimension, ...] = (
    Choice(name="a", options=("x", "y", "z")),
    Choice(name="b", options=tuple(range(20))),
    Real(name="rate", low=0.1, high=0.9),
)


def make(dimensions: tuple[Dimension, ...] = DIMENSIONS, **options) -> OptunaSuggester:
    return OptunaSuggester(
        dimensions,
        objectives=(Objective("score", "maximize"),),
        sampler=PluginChoice(name=options.pop("sampler", "random")),
        seed=1,
        **options,
    )


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        (
            {"a": "x", "b": 3, "rate": 1.5},
            "rate: the value of a stored trial must lie in the search space.*but got 1.5",
        ),
        ({"a": "w", "b": 3, "rate": 0.5}, "'w' not in"),
        ({"a": "x", "c": 3}, r"dimensions of the search space only \(a, b, rate\), but got a, c"),
    ],
)
def test_a_trial_of_another_space_is_refused(point: Point, problem: str) -> None:
    for take in (make().tell, make().expect):
        with pytest.raises(ValueError, match=problem):
            take(make_trial(0, point=point, metrics={"score": 1.0}))


def test_refused_draws_leave_nothing_behind() -> None:
    suggester = make(DIMENSIONS[:2], sampler="tpe", problem=lambda point: None if point["b"] == 7 else "not seven")
    for number in range(3):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        assert suggestion.point["b"] == 7
        suggester.tell(make_trial(number, point=suggestion.point, metrics={"score": 1.0}))
    assert suggester.ask(3) is None
    study = suggester._study
    assert len(study.trials) == 4  # and the one that found nothing
    assert (history_of(study).num_ended, history_of(study).running) == (3, [])


def test_a_first_point_that_occurs_several_times_is_tried_as_often_also_after_a_restart() -> None:
    points: list[Point] = [{"a": name, "b": 3, "rate": 0.5} for name in "xy"] * 2

    def tried(suggester: OptunaSuggester, numbers: range) -> list[Point]:
        found = []
        for number in numbers:
            suggestion = suggester.ask(number)
            assert suggestion is not None
            found.append(suggestion.point)
            suggester.tell(make_trial(number, point=suggestion.point, metrics={"score": 1.0}))
        return found

    assert tried(make(first=points), range(4)) == points
    restarted = make(first=points)
    for number in range(3):
        restarted.tell(make_trial(number, point=points[number], metrics={"score": 1.0}))
    later = tried(restarted, range(3, 6))
    assert later[0] == points[3]
    assert not any(point in points for point in later[1:])


def test_known_results_are_learned_but_are_no_trials() -> None:
    """TPE concentrates where earlier results were good, from its first suggestion on."""
    known = [
        KnownResult({"a": "x", "b": number, "rate": 0.1 + 0.8 * number / 19}, (-abs(number - 4.0),))
        for number in range(20)
    ]
    suggester, plain = make(sampler="tpe", known=known), make(sampler="tpe")
    found = [suggestion.point["b"] for number in range(8) if (suggestion := suggester.ask(number))]
    blind = [suggestion.point["b"] for number in range(8) if (suggestion := plain.ask(number))]
    assert len(found) == len(blind) == 8
    assert sum(abs(int(str(value)) - 4) for value in found) < sum(abs(int(str(value)) - 4) for value in blind)


@pytest.mark.parametrize("sampler", sorted(available("samplers")))
def test_every_sampler_works_with_known_results(sampler: str) -> None:
    known = [KnownResult({"a": "xyz"[number % 3], "b": number}, (float(number),)) for number in range(12)]
    suggester = make(DIMENSIONS[:2], sampler=sampler, known=known)
    for number in range(20):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        state = suggestion.sampler_state
        suggester.tell(make_trial(number, point=suggestion.point, metrics={"score": 1.0}, sampler_state=state))


def test_a_known_result_outside_the_space_is_refused() -> None:
    with pytest.raises(ValueError, match="the value of a stored trial must lie in the search space"):
        make(known=[KnownResult({"a": "x", "b": 3, "rate": 7.0}, (1.0,))])
