"""The verdict on scores in the terminal: shared notes once, and one line if nothing can be said."""

import io
from typing import Any

from rich.console import Console

from orchestrator.cli.verdict_table import correlation


def undefined() -> dict[str, Any]:
    return {"value": None, "low": None, "high": None}


def known(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def row(proxy: str, tau: dict[str, Any], note: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "proxy": proxy,
        "tau": tau,
        "minus": {},
        "beats": [],
        "beats_all": False,
        "partial_tau": None,
        "top_recall": known(0.5),
        "regret": known(0.01),
        "seed_spread": 0.0,
        "num_topologies": 6,
        "is_combination": False,
        "note": note,
        **more,
    }


def printed(rows: list[dict[str, Any]], *, num_topologies: int, **more: Any) -> list[str]:
    result = {
        "proxies": rows,
        "baselines": ["params"],
        "truth": {"target": "validation accuracy", "name": "tiny", "unit": "fraction"},
        "num_seeds": 1,
        "num_topologies": num_topologies,
        "confidence": 0.95,
        "transfers": [],
        "early": None,
    }
    result["truth"] |= more.pop("truth", {})
    result |= more
    console = Console(file=io.StringIO(), width=80, record=True, color_system=None)
    console.print(correlation(result))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_without_any_verdict_one_line_says_why() -> None:
    few = "needs at least 4 scored topologies, but there are 3"
    rows = [row(name, undefined(), few) for name in ("params", "flops", "ntk-condition")]
    text = " ".join(line.strip() for line in printed(rows, num_topologies=3))
    assert text == f"No verdict on 3 scores, from 3 topologies: {few}."


def test_a_note_that_holds_for_all_scores_is_printed_once() -> None:
    shared, one = "the top decile of 30 topologies is a single topology", "2 topologies without a score excluded"
    rows = [row("params", known(0.3), shared), row("flops", known(0.2), f"{one}; {shared}")]
    lines = printed(rows, num_topologies=30)
    assert [line for line in lines if "topology" in line or "excluded" in line] == [
        f"  all scores: {shared}",
        f"  flops: {one}",
    ]


def test_a_note_that_holds_for_some_scores_names_them() -> None:
    note = "the score is the same for every topology"
    rows = [row("params", known(0.3)), row("flops", undefined(), note), row("depth", undefined(), note)]
    assert f"  flops, depth: {note}" in printed(rows, num_topologies=30)


def test_a_single_score_is_named() -> None:
    assert "  params: perfect" in printed([row("params", known(1.0), "perfect")], num_topologies=30)


def test_below_a_table_of_too_few_topologies_one_line_says_what_is_known() -> None:
    lost = {"minus": {"params": known(0.1)}}
    rows = [row("params", known(0.3)), row("flops", known(0.4), "a remark", **lost)]
    lines = printed(rows, num_topologies=6)
    below = " ".join(line.strip() for line in lines[lines.index(next(one for one in lines if "(widen" in one)) + 2 :])
    assert below == (
        "6 topologies are too few for a verdict: no single score is shown to predict better than params. Train 20 or "
        "more."
    )
    rows[1]["beats"] = ["params"]
    assert "flops is shown to predict better than params" in " ".join(" ".join(printed(rows, num_topologies=6)).split())


def test_trainings_that_differ_by_no_more_than_chance_get_one_line_instead_of_a_table() -> None:
    lines = printed([row("params", known(0.3))], num_topologies=30, has_no_verdict=True)
    text = " ".join(line.strip() for line in lines)
    assert text == (
        "These trainings differ by no more than chance: no verdict on 1 scores from 30 topologies. Train longer, use "
        "more validation images, or train each topology with several seeds (`repeats`)."
    )


def test_the_tau_of_a_perfect_score_and_the_epoch_of_the_comparison_are_shown() -> None:
    ceiling = {"source": "seeds", "num_seeds": 3, "reliability": known(0.8), "tau": known(0.7)}
    truth = {"epoch": 3, "num_epochs": 9, "num_left_out": 12}
    lines = printed([row("params", known(0.3))], num_topologies=30, ceiling=ceiling, truth=truth)
    text = " ".join(line.strip() for line in lines)
    assert (
        "Trainings ended at different epochs and are compared at epoch 3 of 9; 12 topologies that ended earlier are "
        "left out. A perfect score would reach a tau of about 0.700 [0.60, 0.80] (from 3 trainings of each topology)."
    ) in text


def test_a_ceiling_from_images_is_told_to_hold_for_these_trainings_only() -> None:
    ceiling = {"source": "images", "num_seeds": 1, "reliability": known(0.8), "tau": known(0.7)}
    lines = printed([row("params", known(0.3))], num_topologies=30, ceiling=ceiling)
    text = " ".join(line.strip() for line in lines)
    assert "a tau of at least about 0.700 [0.60, 0.80] for these very trainings (from the number of images)." in text


def test_scores_that_train_follow_in_a_table_of_their_own_with_their_cost() -> None:
    wins = {"minus": {"params": known(0.3)}, "beats": ["params"], "beats_all": True}
    rows = [row("few-step-loss", known(0.6), training_macs=12.3e6, **wins), row("params", known(0.3))]
    text = "\n".join(printed(rows, num_topologies=30))
    free, trained = text.split("After a few training steps")
    assert "params" in free
    assert "few-step-loss" not in free
    assert "training MACs" in trained
    assert "few-step-loss  0.600 [0.50, 0.70]  12.3M" in trained
    assert "No training-free score was shown to predict better than params." in trained


def test_scores_that_prefer_worse_topologies_are_named_unless_counting_does_so_too() -> None:
    rows = [row("params", known(0.3)), row("zico", known(0.2)), row("mine", known(-0.4), below_zero=True)]
    text = " ".join(line.strip() for line in printed(rows, num_topologies=30))
    assert "prefer worse topologies (tau below zero): mine. If such a score is new, check its `direction`." in text
    reverse = [row("params", known(-0.5), below_zero=True), *rows[1:]]
    assert "prefer worse topologies" not in " ".join(printed(reverse, num_topologies=30))


def test_topologies_of_a_table_without_a_value_are_counted() -> None:
    truth = {"kind": "table", "num_left_out": 2}
    lines = printed([row("params", known(0.3))], num_topologies=30, truth=truth)
    assert "  2 topologies without an accuracy at this epoch are left out." in lines
