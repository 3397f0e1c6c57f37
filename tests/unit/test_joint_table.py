"""The joint verdict over several tables in the terminal and as a figure."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from orchestrator.cli.verdict_table import correlation
from orchestrator.evaluation.joint import ScoredTable, judge_jointly
from orchestrator.reports.tables_plot import summary_of_tables

TITLES = ("acc of pit", "acc of flowers")


def tables() -> list[ScoredTable]:
    rng = np.random.default_rng(0)
    found = []
    for title in TITLES:
        size = rng.normal(size=40)
        accuracy = size + rng.normal(size=40)
        scores = {"params": size, "good": accuracy + 0.2 * rng.normal(size=40), "useless": rng.normal(size=40)}
        found.append(
            ScoredTable(
                title=title,
                topologies=tuple(f"{title}:{place}" for place in range(40)),
                accuracies=accuracy.tolist(),
                scores={name: [values.tolist()] for name, values in scores.items()},
                sizes=np.repeat([1e6, 2e6], 20).tolist(),
            )
        )
    return found


def result() -> dict[str, Any]:
    joint = [
        row.model_dump(mode="json")
        for question in ("any size", "like size")
        for row in judge_jointly(tables(), baselines=("params",), resamples=200, question=question)
    ]
    tau = {"value": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"proxy": "good", "tau": tau, "beats_all": True},
        {"proxy": "params", "tau": tau, "beats_all": False},
        {"proxy": "useless", "tau": {"value": None, "low": None, "high": None}, "beats_all": False},
    ]
    ceiling = {
        "source": "seeds",
        "reliability": {"value": 0.8, "low": 0.7, "high": 0.9},
        "tau": {"value": 0.7, "low": 0.6, "high": 0.8},
    }
    one = {"truth": {"target": "acc", "name": "pit"}, "proxies": rows, "ceiling": ceiling}
    other = {"truth": {"target": "acc", "name": "flowers"}, "proxies": rows, "ceiling": None}
    return {**one, "further": [other], "joint": joint, "baselines": ["params"], "confidence": 0.95}


def printed(given: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110, record=True, color_system=None)
    console.print(correlation(given))
    return " ".join(console.export_text().split())


def test_each_question_has_its_table_and_each_table_its_line() -> None:
    text = printed(result())
    assert "Any size: which of two topologies is better, whatever they cost?" in text
    assert "Like size: which is better of two whose parameters differ by at most 10 %?" in text
    assert "good *" in text
    assert "params (baseline)" in text
    assert "worse on none of them: good." in text
    assert (
        "acc of pit: the strongest baseline is params, tau 0.50 [0.40, 0.60] (a perfect score: 0.70); shown to beat "
        "all baselines: good."
    ) in text
    assert "acc of flowers: the strongest baseline is params, tau 0.50 [0.40, 0.60]; shown" in text


def test_a_table_of_chance_is_named_and_left_out() -> None:
    given = result()
    given["further"][0]["has_no_verdict"] = True
    given["joint"] = []
    text = printed(given)
    assert "No joint verdict: fewer than two tables differ by more than chance." in text
    assert "acc of flowers: these accuracies differ by no more than chance, so it is left out." in text


def test_scores_that_lack_topologies_or_are_too_good_are_named_with_their_tables() -> None:
    given = result()
    for one, count in ((given, 40), (given["further"][0], 30)):
        one["truth"]["num_topologies"] = 40
        one["proxies"] = [dict(row, num_topologies=40, note="a remark") for row in one["proxies"]]
        one["proxies"][0] |= {"num_topologies": count, "note": "10 failed: no memory"}
    given["proxies"][1] |= {"is_suspicious": True, "note": "it ranks almost perfectly"}
    text = printed(given)
    assert "acc of flowers: good: 10 failed: no memory." in text
    assert "acc of pit: params: it ranks almost perfectly." in text
    assert "a remark" not in text


def test_scores_that_train_have_a_table_of_their_own_with_their_cost() -> None:
    given = result()
    truths = [given, *given["further"]]
    for truth, macs in zip(truths, (2e9, 4e9), strict=True):
        truth["proxies"] = [dict(row) for row in truth["proxies"]]
        truth["proxies"][0]["training_macs"] = macs
    parts = printed(given).split("After a few training steps (not training-free;")
    assert len(parts) == 3  # one for each question
    assert "good *" not in parts[0]
    assert all("training MACs" in part and "good * 3G" in part for part in parts[1:])
    assert "None of them is shown to be better" in parts[0]
    assert "shown to beat all baselines: good (after a few training steps)." in parts[2]


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize("name", ["summary.png", "summary.svg"])
def test_the_figure_is_drawn_with_and_without_scores(tmp_path: Path, name: str) -> None:
    verdicts = judge_jointly(tables(), baselines=("params",), resamples=200)
    summary_of_tables(
        [verdicts[0].model_copy(update={"is_better": True}), *verdicts[1:]], tmp_path / name, baselines=("params",)
    )
    assert (tmp_path / name).stat().st_size > 1000
    summary_of_tables([], tmp_path / f"empty-{name}", baselines=("params",))
    assert (tmp_path / f"empty-{name}").stat().st_size > 1000
