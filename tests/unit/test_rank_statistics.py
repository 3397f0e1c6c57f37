"""Statistics of weighted resamples, compared with scipy and plain loops on the repeated points."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.evaluation.rank_statistics import (
    kendall_tau,
    partial_tau,
    regret,
    resample_weights,
    spearman_rho,
    top_recall,
)

# Few distinct values, so that nearly every example has ties in both orders.
VALUES = st.integers(-3, 3)
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=25)


def columns(pairs):
    table = np.array(pairs, dtype=float)
    return table[:, 0], table[:, 1]


def written_out(weights, *values):
    return [[np.repeat(column, row) for column in values] for row in weights]


def ones(count):
    return np.ones((1, count), dtype=np.uint16)


@given(PAIRS, st.integers(0, 100))
@settings(deadline=None)
def test_tau_of_a_resample_is_scipys_tau_of_the_points_written_out(pairs, seed) -> None:
    x, y = columns(pairs)
    weights = resample_weights(len(x), resamples=5, seed=seed)
    for found, (drawn_x, drawn_y) in zip(kendall_tau(weights, x, y), written_out(weights, x, y), strict=True):
        wanted = stats.kendalltau(drawn_x, drawn_y, variant="b").statistic
        assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@given(PAIRS, st.integers(0, 100))
@settings(deadline=None)
def test_rho_of_a_resample_is_the_correlation_of_scipys_midranks(pairs, seed) -> None:
    x, y = columns(pairs)
    weights = resample_weights(len(x), resamples=5, seed=seed)
    for found, drawn in zip(spearman_rho(weights, x, y), written_out(weights, x, y), strict=True):
        ranks = [stats.rankdata(values) for values in drawn]
        constant = any(np.ptp(values) == 0 for values in drawn)
        wanted = math.nan if constant else np.corrcoef(*ranks)[0, 1]
        assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@given(PAIRS, st.integers(0, 100))
@settings(deadline=None)
def test_recall_and_regret_are_the_mean_over_all_ways_to_break_ties(pairs, seed) -> None:
    scores, truth = columns(pairs)
    weights = resample_weights(len(scores), resamples=3, seed=seed)
    recalls, regrets = top_recall(weights, scores, truth), regret(weights, scores, truth)
    for row, (drawn_scores, drawn_truth) in enumerate(written_out(weights, scores, truth)):
        first = drawn_truth[drawn_scores == drawn_scores.max()]
        assert regrets[row] == pytest.approx(drawn_truth.max() - first.mean())
        places = max(1, math.floor(len(drawn_scores) / 10 + 0.5))
        last_score, last_truth = np.sort(drawn_scores)[-places], np.sort(drawn_truth)[-places]
        sure, tied = drawn_scores > last_score, drawn_scores == last_score
        hit = drawn_truth >= last_truth
        expected = hit[sure].sum() + (places - sure.sum()) * hit[tied].mean()
        assert recalls[row] == pytest.approx(expected / places)


def test_the_first_row_is_the_sample_and_the_others_draw_as_many_points() -> None:
    weights = resample_weights(30, resamples=400, seed=0)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 30).all()
    assert weights[1:].mean(0) == pytest.approx(1, abs=0.25)
    assert weights[1:].var() == pytest.approx(1 - 1 / 30, abs=0.05)


def test_the_blocks_of_many_resamples_make_no_difference(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 20).astype(float), rng.normal(size=20)
    weights = resample_weights(20, resamples=50, seed=3)
    whole = [statistic(weights, x, y) for statistic in (kendall_tau, spearman_rho, top_recall, regret)]
    monkeypatch.setattr("orchestrator.evaluation.rank_statistics._BLOCK_ELEMENTS", 7 * 20)
    assert (resample_weights(20, resamples=50, seed=3) == weights).all()
    for statistic, wanted in zip((kendall_tau, spearman_rho, top_recall, regret), whole, strict=True):
        assert statistic(weights, x, y) == pytest.approx(wanted, nan_ok=True)


def test_duplicates_do_not_pull_the_mean_of_tau_towards_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    taus = kendall_tau(resample_weights(40, resamples=4000, seed=0), x, y)
    assert taus[1:].mean() == pytest.approx(taus[0], abs=0.01)


@pytest.mark.parametrize("scale", [1e308, 1e-320])
def test_scores_at_the_ends_of_the_number_range_are_ranked_like_others(scale) -> None:
    x = np.array([-1.0, 0.5, 0.75, 1.0]) * scale
    y = np.array([1.0, 2.0, 4.0, 3.0])
    assert kendall_tau(ones(4), x, y)[0] == pytest.approx(stats.kendalltau([1, 2, 3, 4], y).statistic)


def test_partial_tau_removes_what_the_third_order_explains() -> None:
    rng = np.random.default_rng(0)
    size = rng.normal(size=1000)
    x, y = size + rng.normal(size=1000), size + rng.normal(size=1000)
    xy, xz, yz = (kendall_tau(ones(1000), *pair) for pair in ((x, y), (x, size), (y, size)))
    assert xy[0] > 0.3
    # Tau is no product of paths, as a correlation is: a small part of the common cause stays.
    assert abs(partial_tau(xy, xz, yz)[0]) < 0.15


def test_partial_tau_is_undefined_where_the_third_ranks_exactly_like_one_of_them() -> None:
    xy, xz, yz = np.array([0.5, 0.5, 0.5]), np.array([1.0, -1.0, 0.0]), np.array([0.5, 0.5, 0.0])
    assert partial_tau(xy, xz, yz) == pytest.approx([math.nan, math.nan, 0.5], nan_ok=True)


def test_more_points_than_can_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        resample_weights(70_000, resamples=1, seed=0)
