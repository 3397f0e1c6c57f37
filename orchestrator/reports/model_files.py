"""The files of a report on a model: tables as CSV, figures, and a picture of mistakes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.reports.csv_text import csv_text
from plugins.metrics.names import metric_key
from trainers.results.model_report import ModelReport

if TYPE_CHECKING:
    from trainers.data.images import ImageSplit

FIGURES = ("confusion-matrix.png", "reliability.png", "mistakes.png")


def report_texts(report: ModelReport) -> Mapping[str, str]:
    """The tables of a report: content of text files by name."""
    classes = [[one.name, one.support, one.precision, one.recall, one.f1] for one in report.per_class]
    metrics = [[name, one.value, one.low, one.high, one.method] for name, one in report.metrics.items()]
    mistakes = [[one.image, one.name, one.truth, one.prediction, one.probability] for one in report.mistakes]
    confusion = [[name, *row] for name, row in zip(report.classes, report.confusion, strict=True)]
    return {
        "metrics.csv": csv_text(["metric", "value", "low", "high", "method"], metrics),
        "per-class.csv": csv_text(["class", "support", "precision", "recall", "f1"], classes),
        "confusion-matrix.csv": csv_text(["true class", *report.classes], confusion),
        "mistakes.csv": csv_text(["image", "name", "true class", "prediction", "probability"], mistakes),
    }


def report_metrics(report: ModelReport) -> dict[str, float]:
    """The numbers of a report for MLflow: `test_accuracy_low`, `test_ece`, ..."""
    found = {metric_key(name, part=report.part): one for name, one in report.metrics.items()}
    values = {name: one.value for name, one in found.items()}
    values |= {f"{name}_low": one.low for name, one in found.items() if one.low is not None}
    values |= {f"{name}_high": one.high for name, one in found.items() if one.high is not None}
    return {
        **values,
        f"{report.part}_baseline_accuracy": report.baseline.accuracy,
        f"{report.part}_ece": report.calibration.ece,
        "temperature": report.calibration.temperature,
    }


def draw_report(report: ModelReport, split: "ImageSplit", folder: Path) -> tuple[Path, ...]:
    """Draw the figures of a report into a folder, which is created if missing; returns the files.

    Args:
        report: What to draw.
        split: The images that it is about.
        folder: Where to write the files. Files of an earlier report are replaced.

    Raises:
        OSError: A file cannot be written.
    """
    from orchestrator.reports.model_plots import confusion_matrix, reliability
    from trainers.results.mistakes_sheet import draw_mistakes

    confusion, curve, sheet = (folder / name for name in FIGURES)
    confusion_matrix(report, confusion)
    reliability(report, curve)
    if not report.mistakes:
        return (confusion, curve)
    draw_mistakes(report, split, sheet)
    return (confusion, curve, sheet)
