"""Regularised evolution and the full factorial, through Optuna and the suggester."""

import itertools
import random

import pytest

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.suggester import OptunaSuggester
from plugins.registry import PluginSettingsError, create
from search_spaces.as_vit import AsViTSpace
from search_spaces.dimensions import Choice, Condition, Dimension, Integer, Point, Real
from search_spaces.recipes import PluginChoice
from tests.fakes import make_trial

SPACE = AsViTSpace()


def evolve(dimensions: tuple[Dimension, ...], num_trials: int, score, *, first: tuple[Point, ...] = ()) -> list[Point]:
    sampler = PluginChoice(name="evolution", settings={"population_size": 10, "tournament_size": 10})
    suggester = OptunaSuggester(
        dimensions, objectives=(Objective("score", "maximize"),), sampler=sampler, seed=4, first=first
    )
    points = []
    for number in range(num_trials):
        point = suggester.ask(number).point
        points.append(point)
        suggester.tell(make_trial(number, point=point, metrics={"score": score(point)}))
    return points


def distance(first: Point, second: Point) -> int:
    return sum(first[name] != second[name] for name in first)


def test_a_child_differs_from_the_best_of_the_tournament_in_one_dimension() -> None:
    values = random.Random(0)
    scores: dict[str, float] = {}
    points = evolve(SPACE.dimensions(), 40, lambda point: scores.setdefault(str(point), values.random()))
    for number in range(10, 40):
        alive = points[number - 10 : number]  # the tournament is the whole population
        parent = max(alive, key=lambda point: scores[str(point)])
        assert distance(points[number], parent) == 1


def test_the_oldest_die_even_if_they_are_the_best() -> None:
    dimensions = SPACE.dimensions()
    best: Point = {d.name: d.options[0] if isinstance(d, Choice) else d.low for d in dimensions}
    points = evolve(
        dimensions, 60, lambda point: 100.0 if point == best else float(point["topology.heads"] == 64), first=(best,)
    )
    assert distance(points[10], best) == 1  # still the oldest of ten
    assert all(distance(point, best) > 1 for point in points[-5:])


def test_conditions_and_real_numbers_are_inherited() -> None:
    dimensions: tuple[Dimension, ...] = (
        Choice(name="method", options=("plain", "paced")),
        Real(name="start", low=1e-4, high=1.0, log=True, when=Condition(name="method", equals="paced")),
        Real(name="rate", low=-1.0, high=1.0),
    )
    points = evolve(dimensions, 120, lambda point: float(point["method"] == "paced") - abs(point["rate"] - 0.3))
    assert all(("start" in point) == (point["method"] == "paced") for point in points)
    assert all(1e-4 <= point.get("start", 0.1) <= 1.0 and -1.0 <= point["rate"] <= 1.0 for point in points)
    late = points[-30:]
    assert sum(point["method"] == "paced" for point in late) > 20
    assert sum(abs(point["rate"] - 0.3) for point in late) / 30 < 0.25  # 0.54 for uniform draws


def test_a_tournament_larger_than_the_population_is_refused() -> None:
    with pytest.raises(PluginSettingsError, match="`tournament_size` must not exceed `population_size`, but got 9 > 5"):
        create("samplers", "evolution", {"population_size": 5, "tournament_size": 9})


def test_a_grid_tries_every_point_in_order_past_known_and_refused_ones() -> None:
    dimensions: tuple[Dimension, ...] = (
        Choice(name="a", options=("x", "y")),
        Integer(name="b", low=1, high=5, step=2, when=Condition(name="a", equals="y")),
        Choice(name="c", options=(True, False)),
    )
    suggester = OptunaSuggester(
        dimensions,
        objectives=(Objective("score", "maximize"),),
        sampler=PluginChoice(name="grid"),
        seed=1,
        first=({"a": "y", "b": 3, "c": True},),
        problem=lambda point: "five is too much" if point.get("b") == 5 else None,
    )
    asked = list(
        itertools.takewhile(lambda point: point is not None, (suggester.ask(number) for number in itertools.count()))
    )
    assert [tuple(suggestion.point.values()) for suggestion in asked] == [
        ("y", 3, True),
        ("x", True),
        ("x", False),
        ("y", 1, True),
        ("y", 1, False),
        ("y", 3, False),
    ]


def test_a_grid_needs_no_list_of_all_points() -> None:
    points = create("samplers", "grid").points(SPACE.dimensions())
    first, second = next(points), next(points)
    assert distance(first, second) == 1
    assert second["topology.heads"] == 32  # the last dimension changes fastest
