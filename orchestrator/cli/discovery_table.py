"""The report on a discovered formula, for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.joint_table import joint_rankings
from orchestrator.cli.verdict_table import ceiling_text
from orchestrator.discovery.run import BASELINES, CONFIDENCE, Findings, TruthVerdicts, interval_text
from orchestrator.evaluation.verdict import Interval, Verdict


def discovery_report(findings: Findings, *, saved: Path | None) -> RenderableType:
    """The formula, the verdicts on it and the baselines on the held-out halves, jointly and by table, and the file."""
    found = findings.discovery
    parts: list[RenderableType] = [
        Text(f"{findings.name} = {found.formula}", style="bold", overflow="fold"),
        Text(
            f"  {found.formula.size} inputs and operations; the best of {found.num_formulas:,} formulas on the "
            f"searched half has {found.front[-1].formula.size}, and is better there by no more than the margin"
        ),
    ]
    if findings.joint:
        parts.append(Text(f"\nheld-out halves of {len(findings.joint[0].tables)} tables together", style="bold"))
        rows = [row.model_dump(mode="json") for row in findings.joint]
        parts += joint_rankings(rows, BASELINES, CONFIDENCE, {})[:-1]
    for truth in findings.verdicts:
        count = truth.held_out[0].num_topologies
        searched = next(row for row in truth.searched if row.proxy == findings.name)
        parts += [
            Text(f"\n{truth.title}: {count} topologies held out", style="bold"),
            *(Text(f"  {line}") for line in _limits(truth)),
            _table(truth.held_out),
            Text(
                f"  on the {searched.num_topologies} searched topologies, {findings.name} has {_text(searched.tau)}; "
                "the search selected it for a high value there"
            ),
        ]
    if saved is not None:
        parts.append(Text(f"\nsaved as {saved}; use it by name: --proxies {findings.name}", overflow="ignore"))
    return Group(*parts)


def _limits(truth: TruthVerdicts) -> list[str]:
    """What these accuracies can show."""
    if truth.has_no_verdict:
        return [
            "These accuracies differ by no more than chance: no verdict. Use more topologies, or accuracies from more "
            "images or several seeds."
        ]
    return [] if truth.ceiling is None else [ceiling_text(truth.ceiling.model_dump(mode="json"))]


def _table(rows: Sequence[Verdict]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("score", "tau-b", *(f"minus {one}" for one in BASELINES), "beats"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.proxy, *_cells(row))
    return table


def _cells(row: Verdict) -> list[str]:
    beaten = [name for name in row.minus if row.beats(name)]
    differences = [_text(row.minus[one]) if one in row.minus else "(itself)" for one in BASELINES]
    return [_text(row.tau), *differences, "all" if row.beats_all else ", ".join(beaten) or "-"]


def _text(interval: Interval) -> str:
    return interval_text(interval, digits=2)
