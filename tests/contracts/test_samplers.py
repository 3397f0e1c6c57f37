"""Every installed sampler, through the suggester that both engines ask."""

import math
import random

import pytest

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.protocols import Enumeration, PluginCard
from search_spaces.dimensions import Choice, Condition, Dimension, Integer, Point, Real, is_active
from search_spaces.recipes import PluginChoice

DIMENSIONS: tuple[Dimension, ...] = (
    Choice(name="method", options=("plain", "paced")),
    Real(name="method.paced.start", low=0.1, high=0.5, when=Condition(name="method", equals="paced")),
    Real(name="rate", low=1e-4, high=1e-1, log=True),
    Integer(name="depth", low=1, high=9, step=2),
)
FINITE: tuple[Dimension, ...] = (
    Choice(name="method", options=("plain", "paced")),
    Choice(name="rate", options=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)),
    Integer(name="depth", low=1, high=9, step=2),
)
"""For samplers that take no ranges of real numbers or no conditions."""
OBJECTIVES = (Objective("score", "maximize"), Objective("cost", "minimize"))


@pytest.fixture(params=sorted(registry.available("samplers")))
def sampler(request: pytest.FixtureRequest) -> str:
    return request.param


def dimensions_of(sampler: str) -> tuple[Dimension, ...]:
    """The richest of our spaces that a sampler takes."""
    plugin = registry.create("samplers", sampler)
    assert plugin.problem(FINITE) is None
    return DIMENSIONS if plugin.problem(DIMENSIONS) is None else FINITE


def make(sampler: str, num_objectives: int = 1, seed: int = 5, **options) -> OptunaSuggester:
    return OptunaSuggester(
        options.pop("dimensions", dimensions_of(sampler)),
        objectives=OBJECTIVES[:num_objectives],
        sampler=PluginChoice(name=sampler),
        seed=seed,
        **options,
    )


def result(number: int, point: Point, sampler_state: dict, state: str = "complete") -> TrialRecord:
    score = -((math.log10(float(point.get("rate", 0.01))) + 2.5) ** 2) + float(point.get("depth", 1)) / 10
    return TrialRecord(
        id=number,
        stage_id=0,
        number=number,
        state=state,
        point=point,
        sampler_state=sampler_state,
        seed=number,
        metrics={} if state == "failed" else {"score": score, "cost": float(point.get("depth", 1))},
        details={"rung": 1 + number % 3} if state == "stopped" else {},
        reason=None,
        error=None,
        started_at=0.0,
        ended_at=1.0,
    )


def run(suggester: OptunaSuggester, num_trials: int, told: list[TrialRecord] | None = None) -> list[TrialRecord]:
    trials = list(told or [])
    for trial in trials:
        suggester.tell(trial)
    while len(trials) < num_trials:
        suggestion = suggester.ask(len(trials))
        if suggestion is None:
            break
        state = "failed" if len(trials) % 11 == 7 else "complete"
        trials.append(result(len(trials), suggestion.point, suggestion.sampler_state, state))
        suggester.tell(trials[-1])
    return trials


def test_it_has_a_card(sampler: str) -> None:
    assert isinstance(registry.load("samplers", sampler).card, PluginCard)


@pytest.mark.parametrize("num_objectives", [1, 2])
def test_a_suggester_rebuilt_from_rows_at_any_point_suggests_the_same(sampler: str, num_objectives: int) -> None:
    straight = run(make(sampler, num_objectives), 40)
    for stop in (1, 8, 12, 17, 25, 33):
        resumed = run(make(sampler, num_objectives), 40, told=straight[:stop])
        assert [trial.point for trial in resumed] == [trial.point for trial in straight]


def test_several_at_once_differ_and_a_suggester_rebuilt_while_they_run_suggests_the_same(sampler: str) -> None:
    suggester, running, ended = make(sampler), [], []
    for number in range(28):
        suggestion = suggester.ask(number)
        running.append(result(number, suggestion.point, suggestion.sampler_state))
        if len(running) == 4:
            ended.append(running.pop(1))  # not in the order in which they were asked for
            suggester.tell(ended[-1])
    trials = sorted([*running, *ended], key=lambda trial: trial.number)
    assert len({repr(sorted(trial.point.items())) for trial in trials}) == 28
    rebuilt = make(sampler)
    for trial in trials:
        (rebuilt.expect if trial in running else rebuilt.tell)(trial)
    assert rebuilt.ask(28).point == suggester.ask(28).point


@pytest.mark.parametrize("num_objectives", [1, 2])
def test_suggesters_rebuilt_while_trials_run_that_end_in_any_order_suggest_the_same(
    sampler: str, num_objectives: int
) -> None:
    order, running, ended = random.Random(3), [], []
    suggester = make(sampler, num_objectives)
    for number in range(60):
        trials = sorted([*running, *ended], key=lambda trial: trial.number)
        rebuilt = make(sampler, num_objectives)
        for trial in trials:
            (rebuilt.expect if trial in running else rebuilt.tell)(trial)
        suggestion = suggester.ask(number)
        assert rebuilt.ask(number) == suggestion
        state = {3: "stopped", 7: "failed"}.get(number % 11, "complete")
        running.append(result(number, suggestion.point, suggestion.sampler_state, state))
        while len(running) > 3:
            ended.append(running.pop(order.randrange(len(running))))
            suggester.tell(ended[-1])


def test_points_lie_in_the_space_and_have_active_dimensions_only(sampler: str) -> None:
    dimensions = dimensions_of(sampler)
    for trial in run(make(sampler), 30):
        active = {dimension.name for dimension in dimensions if is_active(dimension, trial.point)}
        assert set(trial.point) == active
        assert 1e-4 <= trial.point["rate"] <= 1e-1
        assert trial.point["depth"] in {1, 3, 5, 7, 9}


def test_another_seed_gives_other_points_unless_the_sampler_has_an_order_of_its_own(sampler: str) -> None:
    points = [[trial.point for trial in run(make(sampler, seed=seed), 5)] for seed in (1, 2)]
    has_order = isinstance(registry.create("samplers", sampler), Enumeration)
    assert (points[0] == points[1]) == has_order


def test_dimensions_that_a_sampler_cannot_take_are_refused_by_name(sampler: str) -> None:
    if dimensions_of(sampler) is DIMENSIONS:
        make(sampler, dimensions=DIMENSIONS)
    else:
        with pytest.raises(ValueError, match=f"{sampler} needs .*, but (rate|method).* is .* sampler"):
            make(sampler, dimensions=DIMENSIONS)


def test_a_small_space_is_tried_whole_once_and_then_ends(sampler: str) -> None:
    small = (Choice(name="a", options=(1, 2, 3)), Integer(name="depth", low=1, high=4))
    trials = run(make(sampler, dimensions=small), 100)
    assert len(trials) == 12
    assert len({(trial.point["a"], trial.point["depth"]) for trial in trials}) == 12


def test_points_with_a_problem_are_never_suggested(sampler: str) -> None:
    suggester = make(sampler, problem=lambda point: "too deep" if point["depth"] > 5 else None)
    assert max(trial.point["depth"] for trial in run(suggester, 25)) <= 5


def test_first_points_come_first_and_are_not_repeated(sampler: str) -> None:
    first: Point = {"method": "plain", "rate": 0.01, "depth": 3}
    trials = run(make(sampler, first=[first]), 10)
    assert trials[0].point == first
    assert all(trial.point != first for trial in trials[1:])
