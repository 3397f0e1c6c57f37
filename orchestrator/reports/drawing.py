"""Style shared by all figures: colours, axes and titles. Imports matplotlib lazily, as the figures do.

A figure is a PNG file or, for a web page, an SVG file. The latter is narrow enough for a phone, has its axes below each
other, and its points have titles, which browsers show under the pointer.
"""

import json
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREEN, GREY, INK, SOFT_INK = "#0072b2", "#d55e00", "#009e73", "#9aa3ad", "#22272e", "#5b6470"
CYCLE = (BLUE, "#e69f00", GREEN, "#cc79a7", "#56b4e9", ORANGE, "#7a68a6", SOFT_INK)
"""Okabe and Ito's colours, which colour-blind readers can distinguish, and two other colours."""
_DPI = 160
_PAGE_WIDTH, _WIDE = 5.4, 6.0
"""Width of a figure on a page, and width from which a legend has as many columns as asked for, in inches."""
_LETTER_POINTS = 5.3
"""Mean width of a letter of a title's detail."""
_SHORT_LABEL = 40
"""Labels of up to this many letters fit all axes."""
_TITLES = "titles:"
"""Begins the id of a group in an SVG file whose elements get titles."""
_SVG = "http://www.w3.org/2000/svg"
_NAMESPACES = {"": _SVG, "xlink": "http://www.w3.org/1999/xlink"}


@contextmanager
def new_figure(
    path: Path, *, columns: int = 1, width: float = 6.4, height: float = 4.4, keep_shape: bool = False
) -> Iterator[Any]:
    """Yield the axes of a new figure, then save it to `path` and create the folder if necessary.

    Args:
        path: A PNG file, or an SVG file for a page.
        columns: Number of axes beside each other, or below each other on a page.
        width: Width in inches; a figure on a page is at most 5.4 inches wide.
        height: Height in inches; on a page, that of each of the axes.
        keep_shape: Whether a figure that becomes narrower on a page also becomes lower.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    is_on_page = path.suffix == ".svg"
    style, size = dict(_STYLE), (width, height)
    if is_on_page:
        style |= {"svg.fonttype": "none", "svg.hashsalt": path.stem}  # text as text, and ids that differ by figure
        factor = min(1.0, _PAGE_WIDTH / width)
        height *= factor if keep_shape else 0.8 * columns if columns > 1 else 1.0
        size = (factor * width, height)
    with rc_context(style):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        FigureCanvasAgg(figure)
        axes = figure.subplots(columns, 1) if is_on_page else figure.subplots(1, columns)
        yield axes
        if is_on_page:
            _wrap_labels(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Equal data produce identical files.
        figure.savefig(path, dpi=_DPI, metadata={"Date" if is_on_page else "Software": None})
    if is_on_page:
        _prepare_for_page(path)


def _wrap_labels(figure: Any) -> None:
    """Break labels that are wider than their axes."""
    long = [axes for axes in figure.axes if len(axes.get_xlabel()) > _SHORT_LABEL]
    if long:
        figure.draw_without_rendering()  # places the axes
    for axes in long:
        letters = int(72 * axes.get_window_extent().width / figure.dpi / _LETTER_POINTS)
        axes.set_xlabel("\n".join(textwrap.wrap(axes.get_xlabel(), max(12, letters))))


def name_points(points: Any, texts: Sequence[str]) -> None:
    """Give the points of a scatter plot, or a line, titles on a page.

    Args:
        points: What `scatter` or `plot` returned.
        texts: One text per point in their order, or a single one for all of them.
    """
    points.set_gid(_TITLES + json.dumps(list(texts)))  # written into the SVG file as the id of their group


def _prepare_for_page(path: Path) -> None:
    """Write the titles of points into an SVG file, and remove its size and the ids that other figures have as well."""
    for prefix, address in _NAMESPACES.items():
        ET.register_namespace(prefix, address)
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 - written by Matplotlib
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    for group in root.iter(f"{{{_SVG}}}g"):
        name = group.attrib.pop("id", "")
        if not name.startswith(_TITLES):
            continue
        texts = json.loads(name.removeprefix(_TITLES))
        marks = list(group.iter(f"{{{_SVG}}}use"))
        for mark, text in zip(marks, texts, strict=True) if len(texts) == len(marks) else [(group, texts[0])]:
            title = ET.Element(f"{{{_SVG}}}title")
            title.text = text
            mark.insert(0, title)
    path.write_text(ET.tostring(root, encoding="unicode"), encoding="utf-8")


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
    """Write a title and, below it, a detail, in as many lines as the width of the axes requires."""
    columns = axes.get_subplotspec().get_gridspec().ncols
    letters = int(72 * axes.figure.get_figwidth() / columns / _LETTER_POINTS)
    lines = textwrap.wrap(detail, max(20, letters - 6)) or [""]
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=11 + 11 * len(lines))
    style = {"textcoords": "offset points", "fontsize": 9, "color": SOFT_INK, "va": "bottom"}
    axes.annotate("\n".join(lines), (0, 1), xycoords="axes fraction", xytext=(0, 5), **style)


def legend_below(axes: Any, *, ncols: int = 4, **style: Any) -> None:
    """Add a legend below the axes, in at most two columns if the figure is narrow."""
    figure = axes.figure
    fitting = ncols if figure.get_figwidth() >= _WIDE else min(ncols, 2)
    figure.legend(loc="outside lower center", ncols=fitting, frameon=False, **{"handletextpad": 0.4, **style})


def figure_text(name: str) -> str:
    """A name from outside as text for a figure: no mathematics, no control characters, no broken Unicode."""
    clean = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return clean.replace("$", r"\$")


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
