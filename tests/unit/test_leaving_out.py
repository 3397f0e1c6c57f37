"""Rules fitted on several tables and judged on one that is left out, on simulated scores."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import kendalltau

from orchestrator.discovery.leaving_out import (
    DataFacts,
    TravelRule,
    TravelTable,
    learn_rule,
    learn_rule_with_facts,
    leave_out,
    pool_ranks,
    select_rule,
)
from orchestrator.evaluation.joint import ScoredTable

PLAIN = DataFacts(images_per_class=100, is_distilled=False)
DISTILLED = DataFacts(images_per_class=100, is_distilled=True)


def _table(title: str, scores: dict[str, np.ndarray], truth: np.ndarray, *, facts: DataFacts = PLAIN) -> TravelTable:
    space = title.split()[0]
    return TravelTable(
        table=ScoredTable(
            title=title,
            topologies=tuple(f"{space}:{number}" for number in range(len(truth))),
            accuracies=truth.tolist(),
            scores={name: [values.tolist()] for name, values in scores.items()},
        ),
        facts=facts,
    )


def _scores(rng: np.random.Generator, *names: str, count: int = 40) -> dict[str, np.ndarray]:
    return {name: np.exp(rng.normal(size=count)) for name in ("params", "flops", "depth", *names)}


def _tau(values: Sequence[float], table: TravelTable) -> float:
    return float(kendalltau(values, table.table.accuracies)[0])


def test_ranks_are_centred_and_share_ties() -> None:
    assert pool_ranks(np.array([3.0, 1.0, 1.0, 9.0])).tolist() == [0.125, -0.25, -0.25, 0.375]
    assert np.isnan(pool_ranks(np.array([1.0, np.nan, 2.0]))).tolist() == [False, True, False]


def test_a_rule_is_the_weighted_sum_of_ranks_with_the_facts_of_the_table() -> None:
    table = _table("a", {"params": np.array([1.0, 2.0]), "x": np.array([5.0, np.nan])}, np.zeros(2), facts=DISTILLED)
    assert TravelRule(weights={"params": (1.0, 0.5, 7.0)}).predict(table) == [-0.375, 0.375]
    assert TravelRule(weights={"params": (2.0,), "x": (1.0,)}).predict(table) == [-0.5, 0.5]
    assert np.isnan(TravelRule(weights={"x": (1.0,)}).predict(table)).tolist() == [False, True]


def test_the_score_that_beats_the_baselines_on_every_table_is_selected() -> None:
    rng = np.random.default_rng(0)
    tables = []
    for title in ("a 1", "b 2", "c 3"):
        scores = _scores(rng, "good", "bad")
        tables.append(_table(title, scores, np.log(scores["good"]) + 0.1 * rng.normal(size=40)))
    weights = select_rule(tables).weights
    assert max(weights, key=lambda name: weights[name]) == "good"
    for fit in (select_rule, learn_rule):
        predicted = leave_out(tables, fit, fitted_on="all tables")
        assert all(_tau(values, table) > 0.5 for values, table in zip(predicted, tables, strict=True))


def test_noise_on_the_same_topologies_predicts_nothing_though_the_targets_agree() -> None:
    taus: dict[str, list[float]] = {"in": [], "out": []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scores = _scores(rng, *(f"noise {number}" for number in range(9)))
        quality = rng.normal(size=40)
        tables = [_table(f"a {number}", scores, quality + 0.3 * rng.normal(size=40)) for number in range(2)]
        predicted = leave_out(tables, learn_rule, fitted_on="all tables")
        taus["out"] += [_tau(values, table) for values, table in zip(predicted, tables, strict=True)]
        taus["in"] += [_tau(learn_rule(tables).predict(table), table) for table in tables]
    assert np.mean(taus["in"]) > 0.15
    assert np.mean(taus["out"]) < 0.05


def test_what_a_left_out_table_says_does_not_change_its_prediction() -> None:
    rng = np.random.default_rng(0)
    scores = _scores(rng, "x", "y")
    others = [_table(f"a {number}", scores, rng.normal(size=40)) for number in range(2)]
    mine = [_table("a mine", scores, rng.normal(size=40)) for _ in range(2)]
    for fit in (select_rule, learn_rule, learn_rule_with_facts):
        first, second = (leave_out([*others, one], fit, fitted_on="all tables")[-1] for one in mine)
        assert first == second


def test_a_topology_of_the_left_out_table_is_hidden_on_all_tables() -> None:
    rng = np.random.default_rng(0)
    scores = _scores(rng)
    seen: list[set[str]] = []

    def fit(tables: Sequence[TravelTable]) -> TravelRule:
        seen.append({name for table in tables for name in table.table.topologies})
        return TravelRule(weights={"params": (1.0,)})

    leave_out([_table(f"a {number}", scores, rng.normal(size=40)) for number in range(2)], fit, fitted_on="same space")
    names = {f"a:{number}" for number in range(40)}
    hidden = [names - one for one in seen[:5]]
    assert set.union(*hidden) == names
    assert sum(map(len, hidden)) == 40


def test_rules_are_fitted_on_the_tables_asked_for() -> None:
    rng = np.random.default_rng(0)
    tables = [_table(title, _scores(rng), rng.normal(size=40)) for title in ("a 1", "a 2", "b 1", "b 2")]
    seen: list[list[str]] = []

    def fit(given: Sequence[TravelTable]) -> TravelRule:
        seen.append([table.table.title for table in given])
        return TravelRule(weights={"params": (1.0,)})

    leave_out(tables, fit, fitted_on="other spaces")
    assert seen == [["b 1", "b 2"]] * 2 + [["a 1", "a 2"]] * 2
    seen.clear()
    leave_out(tables, fit, fitted_on="same space")
    assert seen[0] == ["a 2"]
    with pytest.raises(ValueError, match="there must be another table"):
        leave_out(tables[:2], fit, fitted_on="other spaces")


def test_facts_turn_a_relation_that_distillation_reverses() -> None:
    rng = np.random.default_rng(0)
    tables = []
    for title, facts in (("a 1", PLAIN), ("b 2", DISTILLED), ("c 3", PLAIN), ("d 4", DISTILLED)):
        scores = _scores(rng)
        sign = 1 if facts.is_distilled else -1
        tables.append(_table(title, scores, sign * scores["params"] + 0.1 * rng.normal(size=40), facts=facts))
    taus = {}
    for fit in (learn_rule, learn_rule_with_facts):
        predicted = leave_out(tables, fit, fitted_on="all tables")
        taus[fit] = np.mean([_tau(values, table) for values, table in zip(predicted, tables, strict=True)])
    assert taus[learn_rule_with_facts] > 0.6
    assert taus[learn_rule] < 0.3
