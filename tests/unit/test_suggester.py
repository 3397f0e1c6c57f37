"""The suggester: refused calls and stored state."""

import pytest

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.suggester import OptunaSuggester
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
