"""The command diff, which shows what differs between two studies."""

import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.console import out, print_json
from orchestrator.cli.remote import client_of
from orchestrator.settings import load_settings
from orchestrator.study.differing import MISSING, StudyDiff, StudyDifference, diff_studies
from orchestrator.tracking.names import short

_LONG_NUMBER = re.compile(r"-?[0-9]+\.[0-9]{5,}(e-?[0-9]+)?")


def diff_command(first: str, second: str, server: str | None, *, as_json: bool) -> None:
    """Print what differs between two studies."""
    client = client_of(server)
    found = StudyDiff.from_json(client.diff(first, second)) if client else diff_studies(first, second, load_settings())
    if as_json:
        print_json(found.as_json())
    else:
        out(diff_report(found))


def diff_report(found: StudyDiff) -> RenderableType:
    """The differences as one table per subject; subjects without a difference are named in one line."""
    parts: list[RenderableType] = []
    equal = []
    for title, rows in (("File", found.file), ("Images", found.data), ("Champion's configuration", found.champion)):
        if rows is found.champion and found.without_champion:
            parts += [Text(f"No champion yet: {', '.join(found.without_champion)}.\n")]
        elif rows:
            parts += [Text(title, style="bold"), _table(found, rows), Text()]
        else:
            equal.append(title[0].lower() + title[1:])
    parts += [Text("Results", style="bold"), _table(found, found.results)]
    if found.verdict:
        parts.append(Text(f"\n{found.verdict}."))
    if equal:
        parts.append(Text(f"\nNo difference: {', '.join(equal)}."))
    return Group(*parts)


def _table(found: StudyDiff, rows: Sequence[StudyDifference]) -> Table:
    table = Table("", found.first, found.second, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(Text("-" if cell == MISSING else cell) for cell in short_row(row)))
    return table


def short_row(row: StudyDifference) -> StudyDifference:
    """The row with four significant digits of sampled numbers, if they still differ."""
    first, second = _short(row.first), _short(row.second)
    return row if first == second else StudyDifference(row.name, first, second)


def _short(cell: str) -> str:
    return f"{short(float(cell)):.12g}" if _LONG_NUMBER.fullmatch(cell) else cell
