"""The command trials, which lists the trials of a study."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.cli.console import fail, out, print_json, print_text
from orchestrator.cli.exit_status import BAD_INPUT
from orchestrator.cli.remote import client_of, record_of
from orchestrator.settings import load_settings
from plugins.registry import nearest_name

_WIDTH = 80
_NUMBERS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "val_accuracy": ("val. acc. (%)", lambda value: f"{100 * value:.2f}"),
    "val_loss": ("val. loss", lambda value: f"{value:.4f}"),
    "parameters": ("parameters", lambda value: f"{int(value):,}"),
    "wall_time_s": ("time (s)", lambda value: f"{value:.1f}"),
}
"""Columns of the text table, if a stage has them: head and text by name."""
_NOT_REPEATED = frozenset({"stage", "trial", "state", "topology", "reason", "trial_seed", "started_at", *_NUMBERS})

_SAME = (("params", "parameters"), ("macs", "flops"))
"""Metrics that are left out if another one has the same value."""


def trials_command(study: str, server: str | None, *, stage: str | None, as_csv: bool, as_json: bool) -> None:
    """Print the trials of a study, or those of one of its stages."""
    from orchestrator.reports.trial_table import rows_to_csv, trial_row
    from orchestrator.study.access import find_trials

    client = client_of(server)
    if client:
        names = [one["name"] for one in client.study(study)["stages"]]
        rows = [
            trial_row(one["stage"], record_of(one), is_alive=True, wall_time_s=one["wall_time_s"])
            for one in client.trials(study)
        ]
    else:
        rows, names = find_trials(study, load_settings())
    if stage is not None and stage not in names:
        nearest = nearest_name(stage, names)
        hint = f"Did you mean {nearest!r}?" if nearest else "Name one of these."
        fail(f"--stage must be a stage of {study!r} ({', '.join(names)}), but got {stage!r}. {hint}", status=BAD_INPUT)
    shown = [row for row in rows if stage in (None, row["stage"])]
    if as_json:
        print_json(shown)
    elif as_csv:
        print_text(rows_to_csv(shown))
    elif shown:
        out("\n\n".join(_block(name, some) for name in names if (some := [r for r in shown if r["stage"] == name])))
    else:
        out(f"{study}: no trials yet. See: vitsearch status {study}")


def _block(stage: str, rows: Sequence[dict[str, Any]]) -> str:
    """The trials of one stage: a line of numbers each, and below it what was sampled and the other metrics."""
    columns = [name for name in _NUMBERS if any(row.get(name) is not None for row in rows)]
    heads = [_NUMBERS[name][0] for name in columns]
    lines = [f"{stage}: {_counted(rows)}", "  ".join([f"{'trial':>5}  {'state':<8}", *heads])]
    for row in rows:
        cells = [_number(name, row.get(name)).rjust(len(head)) for name, head in zip(columns, heads, strict=True)]
        lines.append("  ".join([f"{row['trial']:>5}  {row['state']:<8}", *cells]).rstrip())
        below = [row["topology"], ", ".join(_values(row)), row["reason"]]
        lines += [f"       {line}" for text in below if text for line in _wrapped(text)]
    return "\n".join(lines)


def _values(row: Mapping[str, Any]) -> Iterator[str]:
    """What was sampled and measured, without what stands in the other lines of the trial or can be told from them."""
    settings = {
        name: [other for other in row if other.startswith(f"{name}.{value}.")]
        for name, value in row.items()
        if isinstance(value, str)
    }
    hidden = {other for others in settings.values() for other in others}
    for name, value in row.items():
        is_known = name in _NOT_REPEATED or name in hidden or name == "metric.wall_time_s"
        is_known |= bool(row["topology"]) and name.startswith("topology.")
        is_known |= any(name == one and value == row.get(other) for one, other in _SAME)
        if is_known or (name.removesuffix(".spread") in row and name.endswith(".spread")):
            continue
        chosen = [f"{other.removeprefix(f'{name}.{value}.')} {_short(row[other])}" for other in settings.get(name, ())]
        spread = row.get(f"{name}.spread")
        yield (
            f"{name.removeprefix('recipe.')} {_short(value)}"
            + (f" ± {spread:.2g}" if spread else "")
            + (f" ({', '.join(chosen)})" if chosen else "")
        )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH - 7, break_on_hyphens=False)


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    states = [row["state"] for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _number(name: str, value: float | None) -> str:
    return "-" if value is None else _NUMBERS[name][1](value)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
