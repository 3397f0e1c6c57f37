"""Rules for every learning-rate schedule, and the behaviour of ours."""

import math

import pytest

from plugins.protocols import PluginCard, Schedule
from plugins.registry import PluginSettingsError, available, create

PROGRESS = [step / 50 for step in range(51)]


@pytest.fixture(params=list(available("schedules")))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return create("schedules", request.param)


def test_it_has_a_card(schedule: Schedule) -> None:
    assert isinstance(schedule.card, PluginCard)
    assert schedule.card.source
    assert schedule.card.cost


def test_it_starts_at_the_full_rate(schedule: Schedule) -> None:
    assert schedule.factor(0.0) == pytest.approx(1.0)


def test_it_stays_between_nothing_and_the_full_rate(schedule: Schedule) -> None:
    assert all(0 <= schedule.factor(progress) <= 1 for progress in PROGRESS)


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_its_floor() -> None:
    cosine = create("schedules", "cosine", {"floor": 0.2})
    assert cosine.factor(0.5) == pytest.approx(0.6)
    assert cosine.factor(0.25) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert cosine.factor(1.0) == pytest.approx(0.2)


def test_linear_falls_by_equal_amounts_to_its_floor() -> None:
    linear = create("schedules", "linear", {"floor": 0.1})
    assert [linear.factor(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.55, 0.1])


def test_constant_does_not_move() -> None:
    assert {create("schedules", "constant").factor(progress) for progress in PROGRESS} == {1.0}


def test_a_floor_above_the_full_rate_is_refused() -> None:
    with pytest.raises(PluginSettingsError, match="floor"):
        create("schedules", "cosine", {"floor": 1.5})
