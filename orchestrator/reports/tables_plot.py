"""One figure of scores on several tables: is any of them better than counting?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.reports.drawing import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    figure_text,
    legend_below,
    new_figure,
    write_title,
)

if TYPE_CHECKING:
    from orchestrator.evaluation.verdict import JointVerdict

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def summary_of_tables(verdicts: "Sequence[JointVerdict]", path: Path, *, baselines: Sequence[str]) -> None:
    """Draw how much each score differs from the strongest baseline: a dot per table, and the mean with its interval.

    Right of the line, a score ranks better than the best of the baselines does on that table. The mean of a score that
    is shown to be better over all tables is green.

    Args:
        verdicts: One per score, in drawing order.
        path: The file to write.
        baselines: The baselines, drawn in another colour.
    """
    drawn = [row for row in verdicts if row.mean_difference.value is not None]
    titles = list(dict.fromkeys(table.table for row in drawn for table in row.tables))
    with new_figure(path, width=8.2, height=2.4 + 0.26 * max(len(drawn), 2)) as axes:
        axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        for place, row in enumerate(drawn):
            _draw_row(axes, place, row, titles, is_baseline=row.proxy in baselines)
        axes.set_yticks(range(len(drawn)), [figure_text(row.proxy) for row in drawn])
        axes.set_ylim(max(len(drawn), 1) - 0.4, -0.6)
        axes.set_xlabel("tau minus that of the strongest baseline on the same table")
        axes.grid(axis="y", visible=False)
        winners = sum(row.is_better for row in drawn)
        detail = (
            f"{winners} of {sum(row.proxy not in baselines for row in drawn)} scores are, on the mean of all tables"
        )
        write_title(axes, f"Which scores are better than counting, on {len(titles)} tables?", detail)
        _legend(axes, titles)


def _draw_row(axes: Any, place: int, row: "JointVerdict", titles: Sequence[str], *, is_baseline: bool) -> None:
    for table in row.tables:
        number = titles.index(table.table)
        if table.difference.value is not None:
            axes.scatter(
                [table.difference.value],
                [place],
                s=16,
                marker=_MARKERS[number % len(_MARKERS)],
                color=CYCLE[number % len(CYCLE)],
                alpha=0.75,
                linewidth=0,
                zorder=2,
            )
    colour = GREEN if row.is_better else ORANGE if is_baseline else BLUE
    mean = row.mean_difference
    if mean.low is not None and mean.high is not None:
        axes.plot([mean.low, mean.high], [place, place], color=colour, linewidth=2.4, alpha=0.6, zorder=3)
    axes.scatter([mean.value], [place], s=44, marker="|", color=colour, linewidth=2.2, zorder=4)


def _legend(axes: Any, titles: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=_MARKERS[number % len(_MARKERS)],
            color=CYCLE[number % len(CYCLE)],
            label=figure_text(title),
        )
        for number, title in enumerate(titles)
    ]
    marks.append(Line2D([], [], color=BLUE, linewidth=2.4, marker="|", label="mean, with its interval"))
    marks.append(Line2D([], [], color=GREEN, linewidth=2.4, marker="|", label="shown to be better"))
    legend_below(axes, ncols=2, handles=marks, handletextpad=0.4, columnspacing=1.4)
