"""The figures of a report on a model: confusion matrix and reliability."""

from pathlib import Path
from typing import Any

from orchestrator.reports.drawing import BLUE, GREY, INK, ORANGE, figure_text, new_figure, write_title
from trainers.results.model_report import ModelReport

_MAX_NAMED, _MAX_NUMBERED = 40, 20
"""Most classes whose names, and whose counts, a confusion matrix shows."""


def confusion_matrix(report: ModelReport, path: Path) -> None:
    """Draw the confusion matrix; colours show the share of each true class, numbers count images.

    Args:
        report: What to draw.
        path: The file to write.
    """
    count = len(report.classes)
    shares = [[cell / sum(row) if sum(row) else 0.0 for cell in row] for row in report.confusion]
    side = min(14.0, 3.2 + 0.42 * min(count, _MAX_NAMED))
    with new_figure(path, width=side + 0.8, height=side, keep_shape=True) as axes:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        if count <= _MAX_NUMBERED:
            _number_cells(axes, report, shares)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if count <= _MAX_NAMED:
            names = [_short(name) for name in report.classes]
            axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
            axes.set_yticks(range(count), names)
        accuracy = report.metrics["accuracy"].value
        detail = f"{report.num_images} images ({report.part}), {100 * accuracy:.1f} % correct"
        write_title(axes, "Confusion matrix", detail)


def _number_cells(axes: Any, report: ModelReport, shares: list[list[float]]) -> None:
    style = {"ha": "center", "va": "center", "fontsize": 8}
    for row, cells in enumerate(report.confusion):
        for column, cell in enumerate(cells):
            if cell:
                axes.text(column, row, str(cell), color="white" if shares[row][column] > 0.5 else INK, **style)


def reliability(report: ModelReport, path: Path) -> None:
    """Draw accuracy against confidence, and below it how many images have each confidence.

    Args:
        report: What to draw.
        path: The file to write.
    """
    calibration = report.calibration
    filled = [one for one in calibration.bins if one.confidence is not None and one.accuracy is not None]
    width = 1 / len(calibration.bins)
    with new_figure(path, columns=2, width=10.0) as (left, right):
        left.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle="--", label="perfect")
        left.plot(
            [one.confidence for one in filled],
            [one.accuracy for one in filled],
            color=BLUE,
            marker="o",
            label=f"{report.part} images",
        )
        left.set_xlim(-0.02, 1.02)
        left.set_ylim(-0.02, 1.02)
        left.set_xlabel("mean probability of the prediction")
        left.set_ylabel("share of correct predictions")
        left.legend(loc="upper left", frameon=False)
        detail = (
            f"calibration error {100 * calibration.ece:.1f} %, without the temperature of "
            f"{calibration.temperature:.2f}: {100 * calibration.ece_uncalibrated:.1f} %"
        )
        write_title(left, "Reliability", detail)
        right.bar(
            [(one.low + one.high) / 2 for one in calibration.bins],
            [one.num_images for one in calibration.bins],
            width=0.9 * width,
            color=ORANGE,
        )
        right.set_xlim(-0.02, 1.02)
        right.set_xlabel("probability of the prediction")
        right.set_ylabel("images")
        write_title(right, "How sure the model is", f"{len(calibration.bins)} bins of equal width")


def _short(name: str) -> str:
    return figure_text(name if len(name) <= 18 else f"{name[:16]}...")
