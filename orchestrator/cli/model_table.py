"""A report on a model as text for people."""

import textwrap
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.safe_text import printable
from plugins.metrics.deciding import DecidingMetric
from trainers.results.model_report import ClassFigures, Estimate, ModelReport

_WIDTH = 80
_MAX_CLASSES, _MAX_CONFUSIONS, _MAX_MISTAKES = 30, 5, 5


def report_lines(report: ModelReport) -> list[tuple[str, str]]:
    """A report in a few lines, each with a name: interval, baseline, calibration and the weakest class."""
    accuracy = report.metrics["accuracy"]
    lines = []
    if accuracy.low is not None and accuracy.high is not None:
        lines.append(
            ("95 % interval", f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %, {report.num_images} images")
        )
    always = f"{100 * report.baseline.accuracy:.1f} % by always answering {report.baseline.name!r}"
    name = report.metric.choice.name
    if name != "accuracy" and name in report.metrics and name in report.baselines:
        found = report.metrics[name]
        interval = "" if found.low is None or found.high is None else f" ({_bounds(report.metric, found)})"
        lines.append(("metric", f"{report.metric.words} {report.metric.text(found.value)}{interval}"))
        always += f", which has {report.metric.words} {report.metric.text(report.baselines[name])}"
    if not report.beats_baseline:
        always += ": the model is NOT better than that"
    lines.append(("baseline", always))
    calibration = report.calibration
    lines.append(
        (
            "calibration",
            f"error {100 * calibration.ece:.1f} % in {len(calibration.bins)} bins "
            f"(temperature {calibration.temperature:.2f})",
        )
    )
    seen = [one for one in report.per_class if one.recall is not None]
    weakest = min(seen, key=lambda one: (one.recall, -one.support))
    if weakest.recall is not None and weakest.recall < 1:
        lines.append(("weakest class", f"{weakest.name!r}: {100 * weakest.recall:.1f} % of {weakest.support} images"))
    return lines


def named_line(name: str, text: str, *, indent: str = "") -> str:
    """A line of a report, which continues below its text if it does not fit into a terminal."""
    begin = f"{indent}{name:<13}  "
    return textwrap.fill(text, _WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin))


def _bounds(metric: DecidingMetric, found: Estimate) -> str:
    return " to ".join(metric.text(bound) for bound in (found.low, found.high) if bound is not None)


def model_report(report: ModelReport) -> RenderableType:
    """A whole report: metrics, classes, frequent confusions, calibration and confident mistakes."""
    parts: list[RenderableType] = [_metric_table(report.metrics)]
    lines = [named_line(name, text) for name, text in report_lines(report) if name != "95 % interval"]
    methods = dict.fromkeys(one.method for one in report.metrics.values())
    lines.append(named_line("intervals", "; ".join(methods)))
    parts += [Text(), Text("\n".join(lines)), Text(), _class_table(report)]
    confusions = _confusions(report)
    if confusions:
        parts += [Text("\nMost frequent confusions", style="bold"), Text("\n".join(confusions))]
    if report.mistakes:
        shown = [
            f"{100 * one.probability:5.1f} %  {one.prediction!r} instead of {one.truth!r}"
            + (f": {printable(one.name)}" if one.name else "")
            for one in report.mistakes[:_MAX_MISTAKES]
        ]
        parts += [Text("\nMost confident mistakes", style="bold"), Text("\n".join(shown))]
    if report.notes:
        parts += [Text("\nNotes", style="bold red"), Text("\n".join(f"- {printable(one)}" for one in report.notes))]
    return Group(*parts)


def _metric_table(metrics: dict[str, Estimate]) -> Table:
    table = _table("metric", "value", "95 % interval")
    for name, one in metrics.items():
        interval = "-" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}"
        table.add_row(name, f"{one.value:.4f}", interval)
    return table


def _class_table(report: ModelReport) -> Table:
    table = _table("class", "images", "precision (%)", "recall (%)", "F1 (%)")
    rows: Sequence[ClassFigures] = report.per_class
    if len(rows) > _MAX_CLASSES:
        rows = sorted(rows, key=lambda one: (one.f1 is None, one.f1))[:_MAX_CLASSES]
        table.title, table.title_justify = f"The {_MAX_CLASSES} weakest of {len(report.per_class)} classes", "left"
    for one in rows:
        table.add_row(printable(one.name), str(one.support), *map(_percent, (one.precision, one.recall, one.f1)))
    return table


def _confusions(report: ModelReport) -> list[str]:
    """The most frequent pairs of a true class and another predicted class."""
    names = report.classes
    pairs = [
        (count, names[row], names[column])
        for row, cells in enumerate(report.confusion)
        for column, count in enumerate(cells)
        if count and row != column
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [f"{count:>5}  {truth!r} taken for {answer!r}" for count, truth, answer in pairs[:_MAX_CONFUSIONS]]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    return table
