"""A web page in one file: sections made of plain blocks, with nothing to load from elsewhere.

Text from outside, such as the names of classes, reaches the page only through Jinja's automatic escaping. The drawings
are Matplotlib's SVG files, which escape their text themselves: a script that draws in the browser, such as plotly's,
would add 4 MB to every page.
"""

import base64
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from orchestrator.reports.page_template import SCRIPT, STYLE, TEMPLATE

MAX_PICTURE_BYTES = 4_000_000
"""Larger pictures are left out of a page."""


class PageText(NamedTuple):
    """A paragraph."""

    text: str
    is_warning: bool = False
    kind: str = "text"


class PageTable(NamedTuple):
    """A table. Columns are numbers, aligned right, except the first `num_text` ones."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_text: int = 1
    marked: int | None = None
    """Index of the row to emphasise."""
    caption: str = ""
    details: tuple[str, ...] = ()
    """A line below each row, which may be long."""
    kind: str = "table"


class Bar(NamedTuple):
    """A row of a `PageBars`."""

    label: str
    text: str
    share: float
    """Length, from 0 to 1."""
    detail: str = ""


class PageBars(NamedTuple):
    """Bars with labels."""

    bars: tuple[Bar, ...]
    kind: str = "bars"


class PageFacts(NamedTuple):
    """Names with values, such as the fields of a recipe."""

    facts: tuple[tuple[str, str], ...]
    kind: str = "facts"


class PageDrawings(NamedTuple):
    """SVG drawings, beside each other if there is room."""

    drawings: tuple[Markup, ...]
    kind: str = "drawings"


class PagePicture(NamedTuple):
    """A picture, as the data address of its content."""

    address: str
    text: str
    """Describes it to people who do not see it."""
    kind: str = "picture"


class PageCode(NamedTuple):
    """Commands or a file, with a line about them."""

    text: str
    code: str
    is_folded: bool = False
    """Whether the code is shown on demand only, and not in print."""
    kind: str = "code"


SingleBlock = PageText | PageTable | PageBars | PageFacts | PageDrawings | PagePicture | PageCode


class PageColumns(NamedTuple):
    """Blocks beside each other if there is room."""

    blocks: tuple[SingleBlock, ...]
    kind: str = "columns"


Block = SingleBlock | PageColumns


class PageSection(NamedTuple):
    """A part of a page."""

    key: str
    """Its address within the page."""
    title: str
    blocks: tuple[Block, ...]


class Tile(NamedTuple):
    """A figure at the top of a page."""

    label: str
    value: str
    detail: str = ""


def render_page(title: str, lead: str, *, tiles: Sequence[Tile], sections: Sequence[PageSection], footer: str) -> str:
    """The page as HTML.

    Args:
        title: What the page is about.
        lead: Its result in one or two sentences.
        tiles: Its most important figures.
        sections: Its parts; those without blocks are left out.
        footer: What it was made from.
    """
    filled = [section for section in sections if section.blocks]
    parts = {"title": title, "lead": lead, "tiles": tiles, "sections": filled, "footer": footer}
    html = _template().render(**parts, style=Markup(STYLE), script=Markup(SCRIPT))  # noqa: S704 - both are constants
    # Names of files may contain bytes that are no text.
    return html.encode("utf-8", "replace").decode("utf-8")


def draw_on_page(name: str, draw: Callable[[Path], Any]) -> Markup | None:
    """A figure as SVG for a page.

    Args:
        name: Name of the figure, which no other figure of the page has.
        draw: Draws the figure into a file, and returns whether it did (or `None`, if it always does).
    """
    with TemporaryDirectory(prefix="vitsearch-page-") as folder:
        path = Path(folder) / f"{name}.svg"
        return read_drawing(path) if draw(path) is not False else None


def read_drawing(path: Path) -> Markup:
    """The SVG file of a figure that `orchestrator.reports.drawing` made."""
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704 - Matplotlib escapes the text


def read_picture(path: Path, text: str) -> PagePicture | None:
    """A PNG file for a page; `None` if it is missing, or too large for a page.

    Args:
        path: The file.
        text: Describes it.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) > MAX_PICTURE_BYTES:
        return None
    return PagePicture(f"data:image/png;base64,{base64.b64encode(content).decode()}", text)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE)
