"""The verdict over several tables: known values, shared draws, and noise that is not marked."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from orchestrator.evaluation.joint import ScoredTable, judge_jointly

NAMES = tuple(f"space:{index}" for index in range(40))


def table(title, accuracies, scores, *, topologies=NAMES, sizes=None):
    return ScoredTable(
        title=title,
        topologies=topologies[: len(accuracies)],
        accuracies=list(accuracies),
        scores={name: [list(values)] for name, values in scores.items()},
        sizes=sizes,
    )


def verdicts(tables, **options):
    return {row.proxy: row for row in judge_jointly(tables, **{"resamples": 300, **options})}


def tau(x, y):
    return stats.kendalltau(x, y).statistic


def some_tables():
    rng = np.random.default_rng(0)
    accuracies = [rng.normal(size=40) for _ in range(2)]
    scores = [
        {name: one + spread * rng.normal(size=40) for name, spread in (("params", 1), ("depth", 3), ("good", 0.3))}
        for one in accuracies
    ]
    scores[1]["depth"], scores[1]["params"] = scores[1]["params"], scores[1]["depth"]
    return accuracies, scores


def test_the_mean_difference_is_that_from_the_strongest_baseline_of_each_table() -> None:
    accuracies, scores = some_tables()
    rows = verdicts([table(f"t{place}", *pair) for place, pair in enumerate(zip(accuracies, scores, strict=True))])
    good = rows["good"]
    assert [one.baseline for one in good.tables] == ["params", "depth"]
    gaps = [
        tau(scores[place]["good"], accuracies[place]) - tau(scores[place][name], accuracies[place])
        for place, name in enumerate(("params", "depth"))
    ]
    assert [one.difference.value for one in good.tables] == pytest.approx(gaps)
    assert good.mean_difference.value == pytest.approx(np.mean(gaps))
    assert good.worst == f"t{np.argmin(gaps)}"
    assert good.is_better
    assert (good.num_beaten, good.num_lost, good.num_missing) == (2, 0, 0)
    assert rows["params"].mean_difference.value < 0  # it is the strongest on one table only
    assert rows["params"].tables[0].difference.value == 0
    assert next(iter(rows)) == "good"


def test_tables_with_the_same_topologies_share_their_draws() -> None:
    accuracies, scores = some_tables()
    twice = [table(title, accuracies[0], scores[0]) for title in ("a", "b")]
    good = verdicts(twice)["good"]
    assert good.tables[0].difference == good.tables[1].difference
    # With the same draws, the mean of twice the same table is as uncertain as one of them.
    assert good.mean_difference == good.tables[0].difference
    other = tuple(name.replace("space", "other") for name in NAMES)
    apart = verdicts([twice[0], table("b", accuracies[0], scores[0], topologies=other)])["good"]
    assert apart.mean_difference.value == pytest.approx(good.mean_difference.value)
    width = good.mean_difference.high - good.mean_difference.low
    assert apart.mean_difference.high - apart.mean_difference.low < 0.85 * width


def test_useless_scores_are_not_marked() -> None:
    rng, marked = np.random.default_rng(3), 0
    for study in range(10):
        tables = []
        for title in ("a", "b"):
            size = rng.normal(size=30)
            scores = {f"s{place}": 0.6 * size + 0.8 * rng.normal(size=30) for place in range(12)}
            tables.append(table(title, rng.normal(size=30), {"params": size, **scores}))
        marked += any(row.is_better for row in judge_jointly(tables, resamples=200, seed=study))
    assert marked == 0


def test_within_a_size_only_pairs_of_like_size_are_compared() -> None:
    rng = np.random.default_rng(5)
    sizes = np.repeat([1e6, 2e6, 4e6, 8e6], 10)
    accuracy = np.log(sizes) + 0.2 * rng.normal(size=40)
    inside = accuracy - np.log(sizes) + 0.01 * rng.normal(size=40)
    one = table("a", accuracy, {"params": sizes + rng.normal(size=40), "inside": inside}, sizes=list(sizes))
    everywhere, within = verdicts([one]), verdicts([one], question="like size")
    assert everywhere["inside"].mean_difference.high < 0
    assert within["inside"].mean_difference.low > 0
    assert within["inside"].mean_tau.value > 0.8
    assert (everywhere["inside"].question, within["inside"].question) == ("any size", "like size")


def test_a_score_that_a_table_lacks_is_judged_on_the_others() -> None:
    accuracies, scores = some_tables()
    missing = {**scores[1], "good": [math.nan] * 40}
    good = verdicts([table("a", accuracies[0], scores[0]), table("b", accuracies[1], missing)])["good"]
    assert (good.num_missing, [one.table for one in good.tables]) == (1, ["a"])
    nowhere = verdicts([table("a", accuracies[0], {**scores[0], "bad": [math.nan] * 40})])["bad"]
    assert (nowhere.mean_difference.value, nowhere.worst, nowhere.is_better) == (None, None, False)


def test_tables_below_8_topologies_have_no_intervals() -> None:
    accuracies, scores = some_tables()
    few = {name: values[:7] for name, values in scores[0].items()}
    rows = verdicts([table("a", accuracies[0][:7], few)])
    assert rows["good"].mean_difference.value is not None
    assert rows["good"].mean_difference.low is None
    assert not any(row.is_better for row in rows.values())


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ([], {}, "needs at least one table, but got none"),
        ([table("a", [1.0] * 9, {"params": [1.0] * 9})] * 2, {}, "must have different titles"),
        ([table("a", [1.0] * 9, {"zico": [1.0] * 9})], {}, "a must have the scores of one of the baselines"),
        ([table("a", [1.0] * 9, {"params": [1.0] * 9})], {"question": "like size"}, "needs `sizes`"),
        ([table("a", [1.0] * 9, {"params": [1.0] * 8})], {}, "for each of its 9 topologies, but got [8, 9]"),
    ],
)
def test_bad_tables_are_refused(tables, options, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        judge_jointly(tables, **options)
