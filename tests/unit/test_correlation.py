"""The verdict: known values, coverage of its intervals, and unusual input."""

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.evaluation.judging import judge_proxies

ACCURACY = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99]
NAN = math.nan


def run(scores, accuracy=ACCURACY, **options):
    """Verdicts by name; a flat list of scores is one seed."""
    table = {name: rows if not len(rows) or np.ndim(rows[0]) else [rows] for name, rows in scores.items()}
    directions = dict.fromkeys(scores, "maximize") | options.pop("directions", {})
    given = {"baselines": ["params"], "resamples": 300, "confidence": 0.95, "seed": 1} | options
    return {row.proxy: row for row in judge_proxies(table, accuracy, directions=directions, **given)}


def shuffled(seed):
    return list(np.random.default_rng(seed).permutation(len(ACCURACY)) * 1.0)


def test_a_perfect_ranking_has_tau_one_and_a_reversed_one_minus_one() -> None:
    rows = run({"params": shuffled(0), "best": ACCURACY, "worst": ACCURACY[::-1]})
    assert rows["best"].tau.value == rows["best"].spearman.value == pytest.approx(1)
    assert rows["worst"].tau.value == rows["worst"].spearman.value == pytest.approx(-1)
    assert (rows["best"].top_recall.value, rows["best"].regret.value) == (1, 0)
    assert (rows["worst"].top_recall.value, rows["worst"].regret.value) == (0, pytest.approx(0.89))
    assert list(rows) == ["best", "params", "worst"]


def test_a_score_that_is_better_when_lower_is_turned_round() -> None:
    row = run({"params": shuffled(0), "loss": ACCURACY[::-1]}, directions={"loss": "minimize"})["loss"]
    assert row.tau.value == pytest.approx(1)
    assert row.regret.value == 0


def test_ties_are_counted_as_tau_b_does() -> None:
    scores, accuracy = [1, 2, 2, 3, 4, 4], [0.1, 0.1, 0.3, 0.2, 0.5, 0.6]
    row = run({"params": scores}, accuracy)["params"]
    assert row.tau.value == pytest.approx(stats.kendalltau(scores, accuracy).statistic)
    assert row.spearman.value == pytest.approx(stats.spearmanr(scores, accuracy).statistic)


def test_intervals_hold_the_true_tau_about_as_often_as_they_say() -> None:
    rng, held, trials = np.random.default_rng(0), 0, 120
    for trial in range(trials):
        accuracy = rng.normal(size=40)
        row = run({"params": list(accuracy + 0.7 * rng.normal(size=40))}, accuracy, confidence=0.9, seed=trial)
        tau = row["params"].tau
        # Tau of two normal variables with correlation r is 2 / pi * arcsin(r).
        held += tau.low <= 2 / math.pi * math.asin(1 / math.sqrt(1.49)) <= tau.high
    assert 0.8 * trials < held < 0.98 * trials  # three standard errors around 0.9


def test_a_score_as_good_as_the_baseline_seldom_beats_it() -> None:
    rng, wins = np.random.default_rng(0), 0
    for trial in range(100):
        accuracy = rng.normal(size=40)
        rows = run({name: list(accuracy + rng.normal(size=40)) for name in ("params", "same")}, accuracy, seed=trial)
        wins += rows["same"].beats("params")
    assert wins <= 8  # 2.5 are expected; more than 8 have a chance of one in a thousand


def test_only_a_proxy_whose_paired_interval_excludes_zero_beats_the_baseline() -> None:
    accuracy, noise = list(np.arange(60.0)), list(np.random.default_rng(3).normal(size=60))
    rows = run({"params": noise, "good": accuracy, "same": [value * 2 for value in noise]}, accuracy)
    assert rows["good"].beats("params")
    assert rows["same"].minus["params"].model_dump() == {"value": 0, "low": 0, "high": 0}
    assert not rows["same"].beats("params")
    assert rows["params"].minus == {}
    assert not rows["params"].beats("params")


def test_a_proxy_that_knows_nothing_is_not_marked_and_told_that_the_baseline_ranks_worse() -> None:
    accuracy = list(np.arange(60.0))
    rows = run({"params": accuracy[::-1], "noise": list(np.random.default_rng(5).normal(size=60))}, accuracy)
    assert rows["noise"].minus["params"].low > 0
    assert not rows["noise"].beats("params")
    assert not rows["noise"].above_zero
    assert "its tau may be 0 or less: the baselines that it seems to beat (params) rank worse" in rows["noise"].note


def test_accuracies_of_pure_noise_mark_no_score_although_many_seem_to_beat_a_low_baseline() -> None:
    """All scores share the chance by which the baseline is low, so their differences are large together."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=30)
    noise = min((rng.normal(size=30) for _ in range(200)), key=lambda drawn: stats.kendalltau(size, drawn).statistic)
    scores = {f"score{index}": list(0.3 * size + rng.normal(size=30)) for index in range(24)}
    rows = run({"params": list(size), **scores}, noise).values()
    assert sum(row.minus["params"].low > 0 for row in rows if row.proxy != "params") >= 5
    assert not any(row.beaten for row in rows)


def test_a_truly_better_score_is_marked_among_many_useless_ones() -> None:
    rng = np.random.default_rng(2)
    accuracy = rng.normal(size=60)
    noise = {f"noise{index}": list(rng.normal(size=60)) for index in range(24)}
    rows = run(
        {"params": list(rng.normal(size=60)), "good": list(accuracy + 0.3 * rng.normal(size=60)), **noise}, accuracy
    )
    assert [name for name, row in rows.items() if row.beats("params")] == ["good"]


def test_below_8_topologies_there_are_no_intervals_and_no_marks() -> None:
    accuracy = ACCURACY[:7]
    row = run({"params": [3.0, 1, 2, 7, 5, 6, 4], "good": accuracy}, accuracy)["params"]
    assert row.tau.value == pytest.approx(stats.kendalltau([3, 1, 2, 7, 5, 6, 4], accuracy).statistic)
    assert row.tau.low is row.spearman.low is row.regret.low is None
    assert not row.above_zero
    assert "no intervals and no marks: they need at least 8 topologies" in row.note


def test_a_perfect_ranking_has_no_interval_of_zero_width() -> None:
    row = run({"params": shuffled(0), "best": ACCURACY})["best"]
    assert (row.tau.value, row.tau.low, row.tau.high) == (pytest.approx(1), None, None)
    assert row.above_zero


def test_within_a_size_only_pairs_of_like_size_count() -> None:
    rng = np.random.default_rng(4)
    params = np.repeat([1e6, 2e6, 4e6, 8e6], 6) * rng.uniform(1, 1.04, 24)
    accuracy = np.log(params) + 0.2 * rng.normal(size=24)
    inside = accuracy - np.log(params)
    rows = run({"params": list(params), "inside": list(inside)}, list(accuracy))
    groups = [slice(place, place + 6) for place in range(0, 24, 6)]
    signs = sum(
        np.sign(
            np.subtract.outer(inside[group], inside[group]) * np.subtract.outer(accuracy[group], accuracy[group])
        ).sum()
        for group in groups
    )
    found = rows["inside"].same_size["params"]
    assert found.num_pairs == 4 * 15
    assert found.tau.value == pytest.approx(signs / (4 * 30))
    assert found.tau.low < found.tau.value < found.tau.high
    assert rows["params"].tau.value > 0.6 > rows["params"].same_size["params"].tau.value


def test_without_pairs_of_like_size_there_is_no_tau_within_a_size() -> None:
    rows = run({"params": [float(4**index) for index in range(12)], "best": ACCURACY})
    assert rows["best"].same_size["params"].model_dump() == {
        "tau": {"value": None, "low": None, "high": None},
        "num_pairs": 0,
    }


def test_a_proxy_beats_all_only_if_it_beats_every_baseline() -> None:
    accuracy, rng = list(np.arange(60.0)), np.random.default_rng(3)
    scores = {"params": list(rng.normal(size=60)), "depth": accuracy, "good": list(accuracy + rng.normal(size=60))}
    rows = run(scores, accuracy, baselines=["params", "depth"])
    assert rows["good"].beats("params")
    assert not rows["good"].beats_all
    assert rows["depth"].beats_all
    assert set(rows["depth"].minus) == {"params"}
    assert not any(row.beats_all for row in run(scores, accuracy, baselines=[]).values())


def test_tau_is_the_mean_over_the_seeds_and_their_spread_is_given() -> None:
    seeds = [ACCURACY, shuffled(1), shuffled(2)]
    row = run({"params": shuffled(0), "noisy": seeds})["noisy"]
    taus = [stats.kendalltau(scores, ACCURACY).statistic for scores in seeds]
    assert row.tau.value == pytest.approx(np.mean(taus))
    assert row.seed_spread == pytest.approx(np.std(taus, ddof=1))
    assert row.num_seeds == 3


def test_one_seed_and_seeds_that_agree_have_no_spread() -> None:
    rows = run({"params": [shuffled(0)] * 3, "once": shuffled(1)})
    assert rows["params"].seed_spread is rows["once"].seed_spread is None
    assert (rows["params"].num_seeds, rows["once"].num_seeds) == (3, 1)


def test_partial_tau_is_the_formula_on_scipys_taus() -> None:
    params, score = shuffled(5), shuffled(6)
    xy, xz, yz = (
        stats.kendalltau(*pair).statistic for pair in ((score, ACCURACY), (score, params), (ACCURACY, params))
    )
    rows = run({"params": params, "score": score})
    wanted = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert rows["score"].partial_tau.value == pytest.approx(wanted)
    assert rows["score"].partial_tau.low < wanted < rows["score"].partial_tau.high
    assert rows["params"].partial_tau is None
    assert run({"score": score}, baselines=[])["score"].partial_tau is None


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ([value**3 for value in shuffled(6)], "it ranks exactly like params"),
        (ACCURACY, "params alone ranks exactly like the accuracy"),
        ([7.0] * 12, "params is the same for every topology"),
        ([1.0, 2.0, 3.0, *[NAN] * 9], "only 3 topologies have both scores"),
    ],
)
def test_an_undefined_partial_tau_says_why(params, reason) -> None:
    row = run({"params": params, "score": shuffled(6)})["score"]
    assert row.tau.value is not None
    assert row.partial_tau.value is None
    assert reason in row.note


def test_a_constant_score_is_said_and_chooses_by_chance() -> None:
    row = run({"params": shuffled(0), "flat": [1.0] * 12})["flat"]
    assert row.tau.value is row.spearman.value is row.minus["params"].value is None
    assert row.top_recall.value == pytest.approx(1 / 12)
    assert row.regret.value == pytest.approx(0.99 - np.mean(ACCURACY))
    assert "same for every topology" in row.note


def test_a_score_that_is_constant_under_one_of_its_seeds_is_said() -> None:
    row = run({"params": shuffled(0), "odd": [shuffled(1), [1.0] * 12]})["odd"]
    assert row.tau.value is row.seed_spread is None
    assert "with some seed" in row.note


def test_a_constant_accuracy_is_said() -> None:
    row = run({"params": shuffled(0)}, [0.5] * 12)["params"]
    assert row.tau.value is None
    assert "same accuracy" in row.note


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_topologies_give_no_statistics(count) -> None:
    rows = run({"params": [[1, 2, 3][:count]], "score": [[3, 2, 1][:count]]}, [0.1, 0.2, 0.3][:count])
    row = rows["score"]
    assert [row.tau.value, row.regret.value, row.partial_tau.value, row.minus["params"].value] == [None] * 4
    assert f"at least 4 scored topologies, but there are {count}" in row.note


def test_a_proxy_without_any_seed_has_no_statistics() -> None:
    row = run({"params": [ACCURACY], "none": []})["none"]
    assert (row.num_topologies, row.num_seeds, row.tau.value) == (0, 0, None)


def test_few_topologies_and_a_perfect_ranking_are_said() -> None:
    note = run({"params": [1, 2, 3, 4, 5]}, [0.1, 0.2, 0.3, 0.4, 0.5])["params"].note
    assert "top decile of 5 topologies is a single topology" in note
    assert "a perfect ranking" in note
    assert run({"params": shuffled(0)})["params"].note is None


def test_failed_topologies_are_left_out_of_the_proxys_own_statistics_and_of_its_differences() -> None:
    params, score = shuffled(0), shuffled(1)
    failed = [*score[:8], NAN, math.inf, *score[10:]]
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    rows = run({"params": params, "score": failed})

    def tau(values):
        return stats.kendalltau([values[index] for index in kept], [ACCURACY[index] for index in kept]).statistic

    assert rows["score"].num_topologies == 10
    assert rows["score"].tau.value == pytest.approx(tau(score))
    assert rows["score"].minus["params"].value == pytest.approx(tau(score) - tau(params))
    assert "2 topologies have no finite score and are excluded" in rows["score"].note
    assert rows["params"].num_topologies == 12
    assert rows["params"].tau.value == pytest.approx(stats.kendalltau(params, ACCURACY).statistic)


def test_a_topology_that_failed_under_one_seed_is_left_out_of_all_and_a_seed_that_failed_everywhere_alone() -> None:
    broken = shuffled(1)
    broken[0] = NAN
    row = run({"params": shuffled(0), "score": [broken, shuffled(2), [NAN] * 12]})["score"]
    assert (row.num_topologies, row.num_seeds) == (11, 2)
    assert "1 topology has no finite score and is excluded" in row.note
    assert "1 of its seeds scored too few topologies to count" in row.note


def test_topologies_without_an_accuracy_are_left_out_of_everything() -> None:
    scores = {"params": shuffled(0), "score": shuffled(1)}
    rows = run(scores, [*ACCURACY[:-1], NAN])
    wanted = run({name: values[:-1] for name, values in scores.items()}, ACCURACY[:-1])
    assert rows["score"].note == "1 topology has no accuracy and is excluded"
    assert rows["score"].model_copy(update={"note": None}) == wanted["score"]


def test_regret_is_in_the_unit_of_the_accuracy() -> None:
    scores = {"params": shuffled(0)}
    fraction = run(scores)["params"].regret
    percent = run(scores, [100 * value for value in ACCURACY])["params"].regret
    assert percent.value == pytest.approx(100 * fraction.value)
    assert percent.high == pytest.approx(100 * fraction.high)


def test_the_same_seed_gives_the_same_verdict_and_another_a_slightly_different_interval() -> None:
    scores = {"params": shuffled(0), "score": [shuffled(1), shuffled(2)]}
    assert run(scores) == run(scores)
    first, second = run(scores)["score"].tau, run(scores, seed=2)["score"].tau
    assert first.value == second.value
    assert first.low != second.low
    assert first.low == pytest.approx(second.low, abs=0.15)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baselines": ["depth"]}, "depth.* have none"),
        ({"directions": {}}, "must have a direction"),
        ({"scores": {"params": [ACCURACY[:-1]]}}, "one score per topology, 12, for every seed, but got 11"),
    ],
)
def test_what_does_not_fit_together_is_refused(wrong, message) -> None:
    given = {
        "scores": {"params": [ACCURACY]},
        "directions": {"params": "maximize"},
        "baselines": ["params"],
        **wrong,
    }
    with pytest.raises(ValueError, match=message):
        judge_proxies(given.pop("scores"), ACCURACY, **given, resamples=100, confidence=0.95, seed=0)
