"""`vitsearch compare`: trials side by side, as a table for 80 columns and as a page of MLflow."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.console import fail, note, out, print_json
from orchestrator.cli.remote import client_of, record_of, records_of
from orchestrator.cli.serving import find_server, open_in_browser, restore, show
from orchestrator.settings import Settings, load_settings
from orchestrator.store.records import TrialRecord
from orchestrator.study.comparison import Comparison, compare_trials
from orchestrator.tracking.names import short
from plugins.metrics.deciding import DecidingMetric

if TYPE_CHECKING:
    from orchestrator.client import Client

_PER_TABLE = 4
_METRICS = ("val_loss", "parameters", "macs", "epochs", "wall_time_s")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_command(
    name: str, numbers: Sequence[int], server: str | None, *, port: int, as_json: bool, open_page: bool | None
) -> None:
    """Print the table, then open the page in MLflow.

    Args:
        name: Name of the study.
        numbers: Numbers of the trials; the best four if empty.
        server: Address of the service, as given.
        port: Port of MLflow's server.
        as_json: Print JSON and open nothing.
        open_page: Whether to open the page; by default only in a terminal.
    """
    client = client_of(server)
    if client:
        _compare_there(client, name, numbers, as_json=as_json, open_page=open_page)
        return
    settings = load_settings()
    found = compare_trials(name, numbers, settings)
    if as_json:
        print_json(found.as_json())
        return
    out(comparison_table(found, deciding_metric(found)))
    if open_page is False or not settings.tracking:
        return
    if open_page is None and not sys.stdout.isatty():
        note(f"open these trials in MLflow with: vitsearch compare {name} {_numbers(found)} --open")
        return
    _open(found, settings, port)


def _compare_there(
    client: "Client", name: str, numbers: Sequence[int], *, as_json: bool, open_page: bool | None
) -> None:
    """Print the table of a service's study, and open its page in MLflow or print the address."""
    sent = client.compare(name, numbers)
    if as_json:
        print_json(sent)
        return
    summary = client.study(name)
    study, stage = records_of(summary, sent["stage"])
    found = Comparison(study, stage, [record_of(trial) for trial in sent["trials"]], sent["champion"])
    out(comparison_table(found, DecidingMetric.model_validate(summary["metric"])))
    if sent["page"] is not None:
        if open_page or (open_page is None and sys.stdout.isatty()):
            open_in_browser(sent["page"])
        else:
            note(f"these trials in MLflow: {sent['page']}")


def _open(found: Comparison, settings: Settings, port: int) -> None:
    from orchestrator.study.tracking_access import compare_page

    server = find_server(settings, port, found.study)
    numbers = [trial.number for trial in found.trials]
    page = compare_page(found.study, found.stage, numbers, settings, server_url=server.url)
    if page is None:
        restore(found.study, settings)
        page = compare_page(found.study, found.stage, numbers, settings, server_url=server.url)
    if page is None:
        fail(
            f"MLflow must have the trials {_numbers(found)} of study {found.study.name!r}, but lacks some of them. "
            f"Open the study instead: vitsearch ui {found.study.name}",
            status=1,
        )
    show(server, page)


def deciding_metric(found: Comparison) -> DecidingMetric:
    """The metric by which the study decides."""
    from orchestrator.spec.study_file import StudySpec

    return DecidingMetric.of(StudySpec.model_validate(found.study.spec).metric[0])


def comparison_table(found: Comparison, metric: DecidingMetric) -> RenderableType:
    """The trials as columns, four per table: their results, then what differs. Long topologies are named by letters."""
    topologies = list(dict.fromkeys(str(trial.point["topology"]) for trial in found.trials))
    parts: list[RenderableType] = [Text(_head(found, topologies), style="bold")]
    for first in range(0, len(found.trials), _PER_TABLE):
        parts.append(_table(found, found.trials[first : first + _PER_TABLE], metric, topologies))
    if len(topologies) > 1:
        lines = [f"{_letter(place)} = {topology}" for place, topology in enumerate(topologies)]
        parts.append(Text("\n" + "\n".join(lines), no_wrap=True, overflow="fold"))
    return Group(*parts)


def _head(found: Comparison, topologies: Sequence[str]) -> str:
    head = f"{found.study.name}, stage {found.stage.name}: {len(found.trials)} trials"
    return head if len(topologies) > 1 else f"{head} of {topologies[0]}"


def _table(
    found: Comparison, trials: Sequence[TrialRecord], metric: DecidingMetric, topologies: Sequence[str]
) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", overflow="fold")
    for trial in trials:
        table.add_column(f"{trial.number}{' ★' if trial.number == found.champion else ''}", justify="right")
    ranked_by = found.stage.result.get("ranked_by", metric.key)
    which = "" if ranked_by == metric.key else " (best)"
    table.add_row(f"val. {metric.words}{which}", *(_result(trial, metric, ranked_by) for trial in trials))
    for name in _METRICS:
        if name != metric.key and any(name in trial.metrics for trial in trials):
            table.add_row(_label(name), *(_cell(trial.metrics.get(name)) for trial in trials))
    for name in found.differing:
        if name == "topology":
            letters = (_letter(topologies.index(str(trial.point[name]))) for trial in trials)
            table.add_row("topology", *letters)
        else:
            table.add_row(_label(name), *(_cell(trial.point.get(name, "-")) for trial in trials))
    return table


def _result(trial: TrialRecord, metric: DecidingMetric, ranked_by: str) -> str:
    value = trial.metrics.get(ranked_by)
    return trial.state if value is None else metric.text(value)


def _label(name: str) -> str:
    known = {"val_loss": "val. loss", "macs": "MACs", "wall_time_s": "training (s)"}
    return known.get(name, name.removeprefix("recipe.").replace("_", " ").replace(".", " "))


def _cell(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        shown = short(value)
        return f"{shown:,.0f}" if shown == int(shown) and abs(shown) >= 1000 else f"{shown:.12g}"
    return str(value)


def _letter(place: int) -> str:
    return _LETTERS[place] if place < len(_LETTERS) else f"T{place + 1}"


def _numbers(found: Comparison) -> str:
    return " ".join(str(trial.number) for trial in found.trials)
