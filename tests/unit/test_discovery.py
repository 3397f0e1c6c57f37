"""Evolutionary search of formulas on made-up statistics with a known best formula."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from orchestrator.discovery.block_tables import StatisticsFiles, join_tables
from orchestrator.discovery.evolution import SearchSettings, judge_formulas, search
from orchestrator.discovery.objective import BlockTable, FormulaObjective, Truth, split_topologies, strongest_tau
from plugins.proxies.formula_text import parse
from plugins.proxies.formulas import all_statistics

STATISTICS = all_statistics()[::12]
PLANTED = f"sum({STATISTICS[3]} * {STATISTICS[20]})"
QUICK = SearchSettings(iterations=2500, population_size=40, max_size=11)


def _table(*, num_topologies: int = 40, num_seeds: int = 1, seed: int = 0) -> BlockTable:
    rng = np.random.default_rng(seed)
    counts = np.tile(rng.integers(2, 6, num_topologies), num_seeds).astype(np.intp)
    return BlockTable(
        statistics=STATISTICS,
        values=rng.uniform(0.5, 2.0, (len(STATISTICS), int(counts.sum()))),
        counts=counts,
        num_seeds=num_seeds,
    )


def _truth(table: BlockTable, accuracy: np.ndarray, name: str = "truth") -> Truth:
    return Truth(name=name, places=np.arange(table.num_topologies), accuracy=accuracy)


def _planted(table: BlockTable, *, sign: float = 1.0) -> Truth:
    return _truth(table, sign * table.scores(parse(PLANTED))[0])


def test_the_objective_is_the_mean_and_the_worst_difference_from_the_strongest_baseline() -> None:
    table = _table(num_seeds=3)
    rng = np.random.default_rng(1)
    some = np.sort(rng.permutation(40)[:25])
    truths = [
        _truth(table, rng.normal(size=40)),
        Truth(name="some", places=some, accuracy=rng.normal(size=25), strongest=-0.2),
        replace(_truth(table, rng.integers(0, 5, 40).astype(float)), strongest=0.3),
    ]
    formula = parse(f"-mean({STATISTICS[1]} / {STATISTICS[2]})")
    taus = np.array(
        [
            np.mean([stats.kendalltau(row[truth.places], truth.accuracy).statistic for row in table.scores(formula)])
            for truth in truths
        ]
    )
    objective = FormulaObjective(table, truths)
    assert objective.taus(formula) == pytest.approx(taus, abs=1e-6)
    for sign, found in zip((1, -1), objective(formula), strict=True):
        differences = sign * taus - np.array([0, -0.2, 0.3])
        assert found == pytest.approx((differences.mean() + differences.min()) / 2, abs=1e-6)


def test_of_two_truths_the_search_finds_what_is_ahead_of_counting_on_both() -> None:
    """One statistic decides each truth, but in opposite directions; another one helps a little on both."""
    table = _table()
    opposite, shared = (table.scores(parse(f"mean({STATISTICS[place]})"))[0] for place in (5, 9))
    truths = [
        replace(_truth(table, shared + sign * opposite, f"sign {sign}"), strongest=strongest)
        for sign, strongest in ((1, 0.1), (-1, 0.2))
    ]
    objective = FormulaObjective(table, truths)
    assert sorted(objective.taus(parse(f"mean({STATISTICS[5]})"))) == pytest.approx([-0.5, 0.5], abs=0.25)
    found = search(table, truths, QUICK.model_copy(update={"iterations": 300}), seed=0)
    assert found is not None
    assert (objective.taus(found.formula) > [0.1, 0.2]).all()
    assert found.objective == objective(found.formula)[0]


def test_the_strongest_baseline_is_the_one_with_the_highest_tau_and_a_constant_one_has_none() -> None:
    truth = Truth(name="some", places=np.array([3, 0, 2, 1]), accuracy=np.array([1.0, 2.0, 3.0, 4.0]))
    tied, reverse, flat = np.array([2.0, 2.0, 3.0, 1.0]), np.array([3.0, 1.0, 2.0, 4.0]), np.ones(4)
    taus = [stats.kendalltau(scores[truth.places], truth.accuracy).statistic for scores in (tied, reverse)]
    assert strongest_tau(truth, [tied, reverse, flat]) == pytest.approx(max(taus))
    assert strongest_tau(truth, [reverse]) == pytest.approx(taus[1])
    assert taus[1] < 0
    assert strongest_tau(truth, [flat]) == 0


def test_scores_that_differ_by_rounding_only_are_ties() -> None:
    table = _table()
    saturated = parse(f"mean(tanh(square(square(square(square({STATISTICS[0]} + {STATISTICS[1]}))))))")
    scores = table.scores(saturated)[0]
    exact = FormulaObjective(table, [_truth(table, np.arange(40.0))])
    pairs = np.abs(scores[:, None] - scores)
    assert ((pairs > 0) & (pairs < 1e-7)).any()
    rounded = np.rint(scores / (np.abs(scores).max() * 1e-6))
    assert exact(saturated)[0] == pytest.approx(stats.kendalltau(rounded, np.arange(40)).statistic, abs=1e-6)


def test_small_scores_of_one_space_do_not_tie_beside_large_ones_of_another() -> None:
    table = _table()
    small = np.arange(40) < 20
    table.values[:, np.repeat(small, table.counts)] *= 1e-9
    formula = parse(f"sum({STATISTICS[0]})")
    scores = table.scores(formula)[0]
    truths = [Truth(name="a", places=np.flatnonzero(one), accuracy=scores[one]) for one in (small, ~small)]
    assert FormulaObjective(table, truths)(formula)[0] == pytest.approx(1)


def test_a_formula_without_a_finite_or_varied_score_has_no_objective() -> None:
    table = _table()
    objective = FormulaObjective(table, [_planted(table)])
    assert np.isnan(objective(parse(f"sum({STATISTICS[0]} - {STATISTICS[0]})"))).all()
    assert np.isnan(objective(parse(f"sum({STATISTICS[1]} / ({STATISTICS[0]} - {STATISTICS[0]}))"))).all()
    assert np.isnan(objective(parse(f"mean({STATISTICS[0]} / {STATISTICS[0]})"))).all()


def test_a_planted_truth_is_found_and_holds_on_topologies_that_were_not_searched_on() -> None:
    table, fresh = _table(), _table(num_topologies=60, seed=9)
    found = search(table, [_planted(table)], QUICK, seed=0)
    assert found is not None
    assert found.objective > 0.9
    assert found.formula.size <= QUICK.max_size
    assert FormulaObjective(fresh, [_planted(fresh)])(found.formula)[0] > 0.85


def test_where_less_is_better_the_formula_has_a_minus_sign() -> None:
    table = _table()
    single = _truth(table, -table.scores(parse(f"mean({STATISTICS[7]})"))[0])
    found = search(table, [single], QUICK, seed=0)
    assert found is not None
    assert str(found.formula) == f"-mean({STATISTICS[7]})"
    assert found.objective == pytest.approx(1)


def test_the_shortest_formula_within_the_margin_is_taken() -> None:
    table = _table()
    noisy = _truth(table, table.scores(parse(PLANTED))[0] + np.random.default_rng(2).normal(0, 2.0, 40))
    wide = search(table, [noisy], QUICK.model_copy(update={"margin": 0.2}), seed=0)
    narrow = search(table, [noisy], QUICK.model_copy(update={"margin": 0.0}), seed=0)
    assert wide is not None
    assert narrow is not None
    assert wide.formula.size < narrow.formula.size
    assert wide.objective >= wide.front[-1].objective - 0.2
    assert narrow.objective == narrow.front[-1].objective
    sizes, taus = zip(*((one.formula.size, one.objective) for one in narrow.front), strict=True)
    assert list(sizes) == sorted(set(sizes))
    assert list(taus) == sorted(set(taus))


def test_the_seed_decides_what_is_found() -> None:
    table = _table()
    truth = _truth(table, np.random.default_rng(3).normal(size=40))
    first, again, other = (search(table, [truth], QUICK, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_stopped_search_gives_the_best_so_far() -> None:
    table, told = _table(), []
    calls = iter(range(10_000))
    found = search(
        table,
        [_planted(table)],
        QUICK,
        seed=0,
        should_stop=lambda: next(calls) >= 600,
        on_progress=lambda done, best: told.append((done, best)),
    )
    assert found is not None
    assert found.interrupted
    assert found.iterations == 600
    assert [done for done, _ in told] == [250, 500]
    assert found.front[-1].objective >= told[-1][1] > 0
    assert search(table, [_planted(table)], QUICK, seed=0, should_stop=lambda: True) is None


def test_statistics_that_are_not_finite_or_constant_are_not_searched() -> None:
    table = _table()
    table.values[0, 3] = np.nan
    table.values[1, :] = 2.0
    table.values[2, 5] = np.inf
    assert table.useful_statistics() == STATISTICS[3:]
    found = search(table, [_planted(table)], QUICK, seed=0)
    assert found is not None
    for one in found.front:
        assert not set(one.formula.statistics) & set(STATISTICS[:3])


def test_accuracies_that_are_all_the_same_are_refused() -> None:
    table = _table()
    with pytest.raises(ValueError, match=r"accuracies must differ.*\(flat\)"):
        search(table, [_truth(table, np.ones(40), "flat")], QUICK, seed=0)


def test_halves_are_equal_and_a_topology_of_two_truths_is_on_one_side() -> None:
    first = Truth(name="a", places=np.arange(0, 30), accuracy=np.zeros(30))
    second = Truth(name="b", places=np.arange(20, 51), accuracy=np.zeros(31))
    searched = split_topologies([first, second], 51, seed=4)
    assert searched[:30].sum() == 15
    assert searched[30:].sum() == 11
    held_out = first.within(~searched), second.within(~searched)
    assert len(held_out[0].places) == 15
    assert set(held_out[0].places) & set(range(20, 30)) == set(held_out[1].places) & set(range(20, 30))
    assert not searched[held_out[1].places].any()
    assert np.array_equal(searched, split_topologies([first, second], 51, seed=4))
    assert not np.array_equal(searched, split_topologies([first, second], 51, seed=5))


def test_a_part_of_the_table_has_the_scores_of_its_topologies() -> None:
    table, formula = _table(num_seeds=2), parse(f"logsum({STATISTICS[4]})")
    mask = np.random.default_rng(0).random(40) < 0.4
    assert np.array_equal(table.only(mask).scores(formula), table.scores(formula)[:, mask])


def test_the_verdict_compares_a_formula_with_the_baselines() -> None:
    table = _table()
    truth = _planted(table).within(np.arange(40) % 2 == 0)
    baselines = {"params": list(np.random.default_rng(5).normal(size=40)), "depth": [float(c) for c in table.counts]}
    found = judge_formulas({"mine": parse(PLANTED)}, table, truth, baselines, resamples=200, confidence=0.9, seed=0)
    assert found[0].proxy == "mine"
    assert {row.num_topologies for row in found} == {20}
    assert found[0].tau.value == pytest.approx(1)
    assert set(found[0].minus) == {"params", "depth"}
    assert found[0].beats("params")


def test_measured_statistics_are_kept_and_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    files, values = StatisticsFiles(tmp_path / "kept"), np.random.default_rng(0).normal(size=(5, 3))
    assert files.find("key") is None
    files.keep("key", values)
    assert np.array_equal(files.find("key"), values)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["key"]
    (tmp_path / "kept" / "key").write_bytes(b"torn")
    assert files.find("key") is None


def test_tables_are_joined_seed_by_seed() -> None:
    statistics = len(all_statistics())
    blocks = {("a", 0): 1, ("b", 0): 2, ("a", 1): 1, ("b", 1): 2}
    measured = {place: np.full((statistics, count), float(10 * place[1] + count)) for place, count in blocks.items()}
    table = join_tables(measured, ["b", "a"], num_seeds=2)
    assert table.scores(parse("sum(l1(mlp.weight))")).tolist() == [[4, 1], [24, 11]]
    assert table.depths == [2, 1]
