"""Tables of `vitsearch list` and `vitsearch plugins`, which import little."""

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.study.sizes import human_size


def study_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """All studies, one row each."""
    if not rows:
        return Text("No studies yet. Start with: vitsearch run studies/quickstart.yaml")
    table = _columns("study", "state", "stages", "test (%)", "size", "updated")
    table.columns[0].overflow = "fold"  # other commands need the full name
    for row in rows:
        accuracy = row["test_accuracy"]
        shown = "-" if accuracy is None else f"{100 * accuracy:.2f}"
        done = f"{row['stages_done']}/{row['stages']}"
        size = human_size(row["num_bytes"]) if "num_bytes" in row else "-"  # a service does not tell
        table.add_row(row["study"], row["state"], done, shown, size, row["updated"])
    return table


def plugin_table(rows: Sequence[dict[str, str]]) -> Table:
    """Plug-ins, one row each."""
    table = _columns("kind", "name", "package", "class")
    for row in rows:
        table.add_row(row["kind"], row["name"], row["package"], row["target"])
    return table


def _columns(*names: str) -> Table:
    return Table(*names, box=None, pad_edge=False, header_style="bold")
