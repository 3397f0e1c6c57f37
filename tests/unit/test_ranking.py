"""Ranks of screened topologies, and which of them are trained."""

import pytest

from orchestrator.stages.topology_ranking import choose_candidates, rank_sums, rank_topologies
from tests.fakes import make_trial

BOTH = {"length": "maximize", "condition": "minimize"}


def trials(*scores: tuple[float, float]):
    return [
        make_trial(number, metrics={"length": length, "condition": condition}, details={"topology": f"t{number}"})
        for number, (length, condition) in enumerate(scores)
    ]


def ranked(count: int) -> list[str]:
    rows = rank_topologies(trials(*[(float(-place), float(place)) for place in range(count)]), BOTH)
    return [row.topology for row in rows]


def test_each_proxy_ranks_in_its_own_direction_and_the_ranks_add_up() -> None:
    scores = [{"length": 3.0, "condition": 10.0}, {"length": 2.0, "condition": 1.0}, {"length": 1.0, "condition": 5.0}]
    assert rank_sums(scores, BOTH) == [0 + 2, 1 + 0, 2 + 1]


def test_equal_scores_share_a_rank_and_the_next_rank_follows_at_once() -> None:
    scores = [{"length": value} for value in (5.0, 5.0, 4.0, 4.0, 1.0)]
    assert rank_sums(scores, {"length": "maximize"}) == [0, 0, 1, 1, 2]


def test_the_lowest_sum_is_first_and_equal_sums_keep_the_order_of_trials() -> None:
    order = rank_topologies(trials((1, 1), (3, 9), (9, 3), (9, 1)), BOTH)
    assert [row.topology for row in order] == ["t3", "t2", "t0", "t1"]
    assert [row.rank_sum for row in order] == [0, 1, 2, 3]
    tied = rank_topologies(trials((1, 1), (2, 2)), BOTH)
    assert [row.topology for row in tied] == ["t0", "t1"]


def test_candidates_are_the_best_and_others_spread_to_the_very_last() -> None:
    assert choose_candidates(ranked(10), best=2, spread=4) == ["t0", "t1", "t3", "t5", "t7", "t9"]
    assert choose_candidates(ranked(10), best=3, spread=0) == ["t0", "t1", "t2"]
    assert choose_candidates(ranked(64), best=3, spread=1)[-1] == "t63"


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 64])
@pytest.mark.parametrize(("best", "spread"), [(1, 0), (1, 1), (3, 3), (2, 5), (6, 60)])
def test_candidates_never_repeat_and_are_as_many_as_there_can_be(count: int, best: int, spread: int) -> None:
    chosen = choose_candidates(ranked(count), best=best, spread=spread)
    assert len(chosen) == len(set(chosen)) == min(count, best + spread)
