"""Sums of ranks within a pool."""

import math

import pytest

from plugins.proxies.az_nas import AzNas
from plugins.registry import available, load

EXPRESSIVITY, TRAINABILITY, COMPLEXITY = AzNas.parts


def _combine(expressivity: list[float], trainability: list[float], complexity: list[float]) -> list[float]:
    return AzNas().combine({EXPRESSIVITY: expressivity, TRAINABILITY: trainability, COMPLEXITY: complexity})


def test_its_parts_are_installed_and_are_to_be_maximized() -> None:
    assert {load("proxies", part).direction for part in AzNas.parts} == {"maximize"}
    assert set(AzNas.parts) <= set(available("proxies"))


def test_the_value_is_the_sum_of_the_logarithms_of_the_ranks_as_shares_of_the_pool() -> None:
    values = _combine([5.0, 7.0, 9.0, 6.0], [-1.0, -4.0, -2.0, -3.0], [10.0, 30.0, 20.0, 40.0])
    ranks = [(1, 4, 1), (3, 1, 3), (4, 3, 2), (2, 2, 4)]
    assert values == pytest.approx([sum(math.log(rank / 4) for rank in row) for row in ranks])


def test_a_topology_that_is_best_in_every_part_has_the_value_0_and_no_other_has_more() -> None:
    values = _combine([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert values[2] == 0
    assert values[0] < values[1] < 0


def test_one_bad_rank_costs_more_than_three_middling_ones() -> None:
    values = _combine([1.0, 3.0, 4.0, 5.0, 2.0], [5.0, 3.0, 1.0, 2.0, 4.0], [5.0, 3.0, 2.0, 1.0, 4.0])
    assert values[1] > values[0]


def test_ties_share_their_mean_rank() -> None:
    values = _combine([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    expected = [(1.5, 1, 2), (1.5, 2, 2), (3, 3, 2)]
    assert values == pytest.approx([sum(math.log(rank / 3) for rank in row) for row in expected])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_failed_topology_has_no_value_and_changes_no_other(bad: float) -> None:
    values = _combine([1.0, bad, 2.0], [2.0, 9.0, 1.0], [1.0, 0.5, 2.0])
    assert math.isnan(values[1])
    assert [values[0], values[2]] == _combine([1.0, 2.0], [2.0, 1.0], [1.0, 2.0])


def test_pools_of_one_of_none_and_of_failures_only_have_an_answer() -> None:
    assert _combine([3.0], [1.0], [2.0]) == [0.0]
    assert _combine([], [], []) == []
    assert all(map(math.isnan, _combine([math.nan] * 2, [1.0, 2.0], [1.0, 2.0])))
