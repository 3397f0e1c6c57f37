"""The verdict on scores over several tables, as tables and sentences for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.tracking.names import count_text

Row = Mapping[str, Any]
_QUESTIONS = {
    "any size": "Any size: which of two topologies is better, whatever they cost?",
    "like size": "Like size: which is better of two whose parameters differ by at most 10 %?",
}
AFTER_TRAINING = "After a few training steps (not training-free; multiply-accumulates per topology and seed):"
_NUM_SHOWN = 12


def joint_verdict(result: Mapping[str, Any]) -> RenderableType:
    """One table per question, then what the tables say one by one."""
    truths = [result, *result["further"]]
    chance = [_title(one) for one in truths if one.get("has_no_verdict")]
    rows = result["joint"]
    parts = joint_rankings(rows, result["baselines"], result["confidence"], _costs(truths))
    if not rows:
        parts.append(_remark("No joint verdict: fewer than two tables differ by more than chance."))
    parts += [_remark(_of_table(one, result["baselines"])) for one in truths if not one.get("has_no_verdict")]
    parts += [
        _remark(f"{title}: these accuracies differ by no more than chance, so it is left out.") for title in chance
    ]
    parts += [_remark(line) for line in _notes(truths)]
    parts.append(_remark("(--format json and correlation.csv in MLflow contain every table with all intervals)"))
    return Group(*parts)


def joint_rankings(
    rows: Sequence[Row], baselines: Sequence[str], confidence: float, costs: Mapping[str, float]
) -> list[RenderableType]:
    """For each question, a table of the scores and what it shows.

    Args:
        rows: Joint verdicts as JSON data, the highest mean difference first.
        baselines: Names of the baselines.
        confidence: Confidence level of the intervals.
        costs: For each score that trains for a few steps, its multiply-accumulates per topology and seed.
    """
    parts: list[RenderableType] = []
    for question, words in _QUESTIONS.items():
        asked = [row for row in rows if row["question"] == question]
        free = [row for row in asked if row["proxy"] not in costs]
        trained = [row for row in asked if row["proxy"] in costs]
        if asked:
            parts.append(_remark(words))
        if free:
            parts += [_ranking(free, baselines), _remark(_conclusion(free, baselines, confidence))]
        if trained:
            parts += [_remark(AFTER_TRAINING), _ranking(trained, baselines, costs)]
            parts.append(_remark(_conclusion(trained, baselines, confidence)))
        if asked:
            parts.append(Text(""))
    return parts


def _costs(truths: Sequence[Row]) -> dict[str, float]:
    """For each score that trains, the multiply-accumulates per topology and seed, as a mean over the tables."""
    found: dict[str, list[float]] = {}
    for row in (row for one in truths for row in one["proxies"]):
        if row.get("training_macs") is not None:
            found.setdefault(row["proxy"], []).append(row["training_macs"])
    return {name: sum(macs) / len(macs) for name, macs in found.items()}


def _ranking(rows: Sequence[Row], baselines: Sequence[str], costs: Mapping[str, float] | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    cost = ["training MACs"] if costs else []
    for name in ("score", *cost, "mean tau", "minus the strongest baseline", "better", "worse", "worst table"):
        table.add_column(name, no_wrap=name != "worst table")
    shown = list(rows[:_NUM_SHOWN]) + [row for row in rows[_NUM_SHOWN:] if row["proxy"] in baselines]
    for row in shown:
        mark = " *" if row["is_better"] else " (baseline)" if row["proxy"] in baselines else ""
        table.add_row(
            f"{row['proxy']}{mark}",
            *([count_text(costs[row["proxy"]])] if costs else []),
            _number(row["mean_tau"]["value"]),
            _interval(row["mean_difference"]),
            str(row["num_beaten"]),
            str(row["num_lost"]),
            _worst(row),
        )
    return table


def _conclusion(rows: Sequence[Row], baselines: Sequence[str], confidence: float) -> str:
    hidden = sum(row["proxy"] not in baselines for row in rows[_NUM_SHOWN:])
    left = f" {hidden} scores with a lower mean are not shown." if hidden else ""
    winners = [row["proxy"] for row in rows if row["is_better"]]
    if not winners:
        return f"None of them is shown to be better than the strongest baseline on the mean of these tables.{left}"
    safe = [row["proxy"] for row in rows if row["is_better"] and not row["num_lost"]]
    nowhere = f"worse on none of them: {', '.join(safe)}" if safe else "but each is worse on at least one of them"
    chance = f"{100 * (1 - confidence) / 2:g} %"
    return (
        f"* shown to be better than the strongest baseline on the mean of these tables (chance of any wrong mark: at "
        f"most about {chance}); {nowhere}.{left}"
    )


def _of_table(one: Mapping[str, Any], baselines: Sequence[str]) -> str:
    known = [row for row in one["proxies"] if row["tau"]["value"] is not None]
    strongest = next((row for row in known if row["proxy"] in baselines), None)
    if strongest is None:
        return f"{_title(one)}: no baseline has a tau."
    winners = [
        row["proxy"] if row.get("training_macs") is None else f"{row['proxy']} (after a few training steps)"
        for row in known
        if row["beats_all"] and row["proxy"] not in baselines
    ]
    ceiling = one.get("ceiling")
    least = "at least " if ceiling and ceiling["source"] == "images" else ""
    limit = f" (a perfect score: {least}{_number(ceiling['tau']['value'])})" if ceiling else ""
    return (
        f"{_title(one)}: the strongest baseline is {strongest['proxy']}, tau {_interval(strongest['tau'])}{limit}; "
        f"shown to beat all baselines: {', '.join(winners) or 'none'}."
    )


def _notes(truths: Sequence[Row]) -> list[str]:
    """Notes on scores that lack topologies or are suspiciously good, with the tables for which they hold."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in truths:
        for row in one["proxies"]:
            is_partial = row.get("num_topologies", 0) < one["truth"].get("num_topologies", 0)
            notes = (row.get("note") or "").split("; ") if is_partial or row.get("is_suspicious") else []
            for note in filter(None, notes):
                found.setdefault((row["proxy"], note), []).append(_title(one))
    return [f"{', '.join(tables)}: {proxy}: {note}." for (proxy, note), tables in found.items()]


def _title(one: Mapping[str, Any]) -> str:
    return f"{one['truth']['target']} of {one['truth']['name']}"


def _worst(row: Row) -> str:
    found = next((table for table in row["tables"] if table["table"] == row["worst"]), None)
    return "-" if found is None else f"{_number(found['difference']['value'])} {found['table']}"


def _interval(interval: Mapping[str, Any]) -> str:
    if interval["value"] is None:
        return "-"
    ends = "" if interval["low"] is None else f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"{interval['value']:.2f}{ends}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _remark(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))
