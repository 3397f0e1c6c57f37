"""Kendall's tau with its interval, against known values and awkward inputs."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.correlation import correlate

ACCURACY = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def run(scores, accuracy=ACCURACY, **options):
    directions = dict.fromkeys(scores, "maximize") | options.pop("directions", {})
    settings = {"baseline": "params", "resamples": 300, "confidence": 0.9, "seed": 1} | options
    return {row.proxy: row for row in correlate(scores, accuracy, directions=directions, **settings)}


def test_a_perfect_ranking_has_tau_one_and_a_reversed_one_minus_one() -> None:
    rows = run({"params": ACCURACY, "worst": ACCURACY[::-1]})
    assert rows["params"].tau.value == pytest.approx(1)
    assert rows["worst"].tau.value == pytest.approx(-1)


def test_a_score_that_is_better_when_lower_is_turned_round() -> None:
    rows = run({"params": ACCURACY, "condition": ACCURACY[::-1]}, directions={"condition": "minimize"})
    assert rows["condition"].tau.value == pytest.approx(1)


def test_ties_are_counted_as_tau_b_does() -> None:
    scores, accuracy = [1, 2, 2, 3, 4, 4], [0.1, 0.1, 0.3, 0.2, 0.5, 0.6]
    row = run({"params": scores}, accuracy)["params"]
    assert row.tau.value == pytest.approx(stats.kendalltau(scores, accuracy).statistic)


def test_the_interval_holds_the_value_and_narrows_with_more_topologies() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (12, 200):
        accuracy = rng.normal(size=count)
        row = run({"params": accuracy + rng.normal(size=count)}, list(accuracy))["params"]
        assert row.tau.low <= row.tau.value <= row.tau.high
        widths.append(row.tau.high - row.tau.low)
    assert widths[1] < widths[0] / 2


def test_only_a_proxy_whose_paired_interval_excludes_zero_beats_the_baseline() -> None:
    rng = np.random.default_rng(3)
    accuracy = list(np.arange(60.0))
    noise = list(rng.normal(size=60))
    rows = run({"params": noise, "good": accuracy, "same": [value * 2 for value in noise]}, accuracy)
    assert rows["good"].beats_baseline
    assert not rows["same"].beats_baseline
    assert rows["same"].tau_minus_baseline.value == 0
    assert rows["params"].tau_minus_baseline is None
    assert not rows["params"].beats_baseline


def test_a_constant_score_is_said_and_has_no_tau() -> None:
    row = run({"params": ACCURACY, "flat": [1.0] * 8})["flat"]
    assert row.tau.value is None
    assert "same for every topology" in row.note


def test_too_few_topologies_give_no_tau() -> None:
    row = run({"params": [1, 2, 3]}, [0.1, 0.2, 0.3])["params"]
    assert row.tau.value is None
    assert "at least" in row.note


def test_scores_that_are_not_finite_are_left_out_and_said() -> None:
    row = run({"params": [*ACCURACY[:6], float("nan"), float("inf")]})["params"]
    assert row.num_topologies == 6
    assert row.tau.value == pytest.approx(1)
    assert "2 topologies" in row.note


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = {"params": [3, 1, 4, 1, 5, 9, 2, 6]}
    assert run(scores)["params"] == run(scores)["params"]
