"""Style shared by all figures: colours, axes and titles. Imports matplotlib lazily, as the figures do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREEN, GREY, INK, SOFT_INK = "#0072b2", "#d55e00", "#009e73", "#9aa3ad", "#22272e", "#5b6470"
CYCLE = (BLUE, "#e69f00", GREEN, "#cc79a7", "#56b4e9", ORANGE, "#7a68a6", SOFT_INK)
"""Okabe and Ito's colours, which colour-blind readers can distinguish, and two other colours."""
_DPI = 160


@contextmanager
def new_figure(path: Path, *, columns: int = 1, width: float = 6.4, height: float = 4.4) -> Iterator[Any]:
    """Yield the axes of a new figure, then save it to `path` and create the folder if necessary."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})  # equal data produce identical files


_STYLE = {
    "font.size": 10,
    "axes.edgecolor": "#c4cad1",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebee",
    "xtick.color": SOFT_INK,
    "ytick.color": SOFT_INK,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def write_title(axes: Any, title: str, detail: str) -> None:
    """Write a title and, below it, a detail."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22)
    style = {"textcoords": "offset points", "fontsize": 9, "color": SOFT_INK, "va": "bottom"}
    axes.annotate(detail, (0, 1), xycoords="axes fraction", xytext=(0, 5), **style)


def whole_numbers(axes: Any) -> None:
    """Label the horizontal axis with whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plain_log(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers such as 0.5 and 2, not with powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
