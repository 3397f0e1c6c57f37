"""Tables for people: stages, the leaderboard, the correlation of proxies."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.cli.model_table import named_line, report_lines
from orchestrator.cli.verdict_table import correlation
from orchestrator.spec.cost import Cost
from orchestrator.stages.kind import stage_kind
from orchestrator.stages.time_left import CostError
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from trainers.data.report import DataReport
from trainers.results.model_report import ModelReport

_WIDTH = 80


def study_report(summary: dict[str, Any], *, is_remote: bool = False) -> RenderableType:
    """The report of a finished study, here or of a service: leaderboard, tau table, champion and next commands."""
    parts: list[RenderableType] = []
    if summary["leaderboard"]:
        parts += _ranking(summary)
    if summary["front"]:
        parts += [_title("Pareto front"), front_table(summary)]
    if summary["correlation"]:
        parts += [_title("How well each proxy ranked the topologies"), correlation(summary["correlation"])]
    champion = summary["champion"]
    if champion:
        parts += [_title("Champion"), champion_lines(champion)]
    name = summary["study"]
    steps = {f"vitsearch report {name}": "write a report, one web page"}
    if not is_remote:
        steps[f"vitsearch ui {name}"] = "open its trials in MLflow"
    steps[f"vitsearch compare {name}"] = "compare the best trials"
    if champion:
        steps[f"vitsearch best {name} > best.yaml"] = "save its configuration, to train it again"
        use = {f"vitsearch download {name}": "copy its champion, for `vitsearch predict`"}
        steps |= use if is_remote else {f"vitsearch predict {name} IMAGE...": "classify your own images"}
    else:
        steps[f"vitsearch status {name}"] = "show the result of each stage"
    width = max(len(command) for command in steps)
    lines = [f"  {command:<{width}}  {what}" for command, what in steps.items()]
    if max(map(len, lines)) > _WIDTH:  # a long name
        lines = [line for command, what in steps.items() for line in (f"  {command}", f"      {what}")]
    return Group(*parts, _title("Next"), Text("\n".join(lines), no_wrap=True, overflow="ignore"))


def status_report(summary: dict[str, Any]) -> RenderableType:
    """A study's state, its stages, and its champion if there is one."""
    state = f"{summary['study']}: {summary['state']}" + (f" ({summary['reason']})" if summary["reason"] else "")
    table = _table("stage", "state", "trials", "time (s)", "result")
    for stage in summary["stages"]:
        trials = ", ".join(f"{count} {name}" for name, count in stage["trials"].items()) or "-"
        seconds = f"{stage['wall_time_s']:.1f}" if stage["wall_time_s"] is not None else "-"
        table.add_row(stage["name"], stage["state"], trials, seconds, _Breakable(stage["reason"] or _result(stage)))
    parts: list[RenderableType] = [Text(state, style="bold"), table]
    if summary["data"]:
        parts += [_title("Data"), Text("\n".join(DataReport.model_validate(summary["data"]).lines()))]
    if summary["leaderboard"]:
        parts += _ranking(summary)
        parts.append(Text(f"  all trials: vitsearch trials {summary['study']}"))
        parts += time_error_lines(summary)
    if summary["champion"]:
        parts += [_title("Champion"), champion_lines(summary["champion"])]
    tracking = summary["tracking"]
    if tracking["owed"]:
        # A process that runs the study sends them meanwhile.
        how = "." if summary["state"] == "running" else "; the next `vitsearch run` or `submit` of its file sends them."
        parts.append(Text(f"{tracking['owed']} events are still waiting to be sent to MLflow{how}"))
    if tracking["rejected"]:
        parts.append(
            Text(
                f"{tracking['rejected']} events failed: MLflow rejected them, and its pages lack their content. "
                f"The first: {str(tracking.get('reason')).rstrip('.')}. Send the whole study again with: vitsearch "
                f"sync {summary['study']}",
                style="yellow",
            )
        )
    return Group(*parts)


def _ranking(summary: dict[str, Any]) -> list[RenderableType]:
    """The best trials, and how certain their order is."""
    ranked_by, baseline = summary["ranked_by"], summary["baseline"]
    rows = leaderboard(summary["leaderboard"], metric_of(summary), ranked_by=ranked_by, baseline=baseline)
    return [_title("Leaderboard"), rows, *certainty_lines(summary)]


def metric_of(summary: dict[str, Any]) -> DecidingMetric:
    """The metric by which a study decides."""
    return DecidingMetric.model_validate(summary["metric"])


def leaderboard(
    rows: Sequence[dict[str, Any]],
    metric: DecidingMetric = ACCURACY,
    *,
    ranked_by: str = ACCURACY.key,
    baseline: Mapping[str, float] | None = None,
) -> Text:
    """The best trials, each with its accuracy, loss or the figure that ranks it, size, topology and recipe.

    The last line is the value of always predicting the largest class.
    """
    is_shown = ranked_by in ("val_accuracy", "val_loss")
    which = "best " if ranked_by != metric.key else ""
    title = "" if is_shown else f"{which}val. {metric.words}" + (" (%)" if metric.is_fraction else "")
    middle = "val. loss" if is_shown else title  # both do not fit into 80 columns
    lines = [f"trial  val. accuracy (%)  {middle}  parameters  time (s)"]
    for row in rows[:5]:
        value = f"{row['val_loss']:.4f}" if is_shown else _percent_or_plain(row[ranked_by], metric)
        lines.append(
            f"{row['trial']:>5}  {100 * row['val_accuracy']:>17.2f}  {value:>{len(middle)}}  "
            f"{int(row['parameters']):>10,}  {row['wall_time_s']:>8.1f}"
        )
        recipe = [
            f"{key.removeprefix('recipe.').replace('_', ' ').replace('.', ' ')} {_number(value)}"
            for key, value in row.items()
            if key.startswith("recipe.")
        ]
        lines += [f"       {line}" for line in [row["topology"], *textwrap.wrap(", ".join(recipe), 72)]]
    if baseline and metric.key in baseline:
        lines.append(f"Predicting the largest class alone: {metric.words} {metric.text(baseline[metric.key])}")
    return Text("\n".join(lines))


def front_table(summary: dict[str, Any]) -> Text:
    """The trials that no other one beats in both objectives, the cheapest first; a star marks the chosen one."""
    metric, cost, key = metric_of(summary), Cost.model_validate(summary["cost"]), summary["ranked_by"]
    title = f"val. {metric.words}" + (" (%)" if metric.is_fraction else "")
    train = [stage["result"] for stage in summary["stages"] if stage["kind"] == "train" and stage["result"]][-1]
    lines = [f"trial   {title}  {cost.words}"]
    for row in summary["front"]:
        mark = "*" if row["trial"] == train["best"]["trial"] else " "
        spent = cost.text(row[cost.key])
        value = _percent_or_plain(row[key], metric)
        lines.append(f"{row['trial']:>5} {mark} {value:>{len(title)}}  {spent:>{len(cost.words)}}")
        lines.append(f"        {row['topology']}")
    chosen = textwrap.wrap(f"* chosen: {train['chosen']}", 80, subsequent_indent="  ")
    return Text("\n".join([*lines, *chosen]), no_wrap=True, overflow="ignore")


def _percent_or_plain(value: float, metric: DecidingMetric) -> str:
    return f"{100 * value:.2f}" if metric.is_fraction else f"{value:.4f}"


def certainty_lines(summary: dict[str, Any]) -> list[Text]:
    """How likely the best trial is really the best, as one sentence; nothing if it is not known."""
    if summary["certainty"] is None:
        return []
    from orchestrator.stages.certainty import RankingCertainty, describe_certainty  # imports NumPy

    text = describe_certainty(RankingCertainty.model_validate(summary["certainty"]))
    return [Text(textwrap.fill(f"{text[0].upper()}{text[1:]}.", 78, initial_indent="  ", subsequent_indent="  "))]


def time_error_lines(summary: dict[str, Any]) -> list[Text]:
    """How well the time and the memory of trainings were predicted; nothing if it is not known."""
    found = summary["time_error"]
    return [] if found is None else [Text(f"  {line}") for line in CostError.model_validate(found).lines]


def champion_lines(champion: dict[str, Any]) -> Text:
    """The champion in a few lines."""
    configuration = champion["configuration"]
    validation = "no validation figure after refit"
    if champion.get("val_accuracy") is not None:
        validation = f"validation {100 * champion['val_accuracy']:.2f} %"
    origin = f"trial {champion['trial']}"
    if champion.get("finalists"):
        (best, *others) = champion["finalists"]
        count = len(best["values"])
        origin += f", best of {1 + len(others)} finalists ({count} new seed{'' if count == 1 else 's'} each)"
    report = champion.get("test")
    lines = [] if report is None else report_lines(ModelReport.model_validate(report))
    copied_by = champion.get("copied_by")  # for a champion on another machine
    place = f"copy it with   {copied_by}" if copied_by else f"folder         {champion['folder']}"
    return Text(
        f"  test accuracy  {100 * champion['test_accuracy']:.2f} % ({validation})\n"
        + "".join(f"{named_line(name, text, indent='  ')}\n" for name, text in lines)
        + f"  topology       {configuration['topology']}\n"
        f"  from           {origin}, averaging {_plugin(configuration['averaging'])}\n"
        f"  {place}",
        no_wrap=True,
        overflow="ignore",  # a wrapped path cannot be copied
    )


class _Breakable:
    """Text whose lines may also end after a `|`, so that a topology is cut between its parts."""

    def __init__(self, text: str) -> None:
        self._parts = re.findall(r"\s*[^\s|]*(?:\||(?=\s|$))", text)
        self._text = text

    def __rich_measure__(self, _console: Console, _options: ConsoleOptions) -> Measurement:
        return Measurement(max((len(part) for part in self._parts), default=0), len(self._text))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for part in self._parts:
            if lines[-1] and len(lines[-1]) + len(part) > options.max_width:
                lines.append("")
            lines[-1] += part if lines[-1] else part.lstrip()
        yield Text("\n".join(lines), overflow="fold")


def _result(stage: dict[str, Any]) -> str:
    kind = stage_kind(stage["kind"])
    return kind.line(kind.result.model_validate(stage["result"])) if stage["result"] else ""


def _plugin(choice: Any) -> str:
    from search_spaces.recipes import PluginChoice, describe_plugin

    return describe_plugin(PluginChoice.model_validate(choice))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")
