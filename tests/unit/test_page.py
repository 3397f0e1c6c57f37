"""A page in one file: everything from outside is escaped, nothing is loaded, and drawings carry titles."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup
from PIL import Image

from orchestrator.reports.drawing import name_points, new_figure, write_title
from orchestrator.reports.model_plots import confusion_matrix
from orchestrator.reports.page import (
    Bar,
    PageBars,
    PageCode,
    PageColumns,
    PageDrawings,
    PageFacts,
    PagePicture,
    PageSection,
    PageTable,
    PageText,
    Tile,
    draw_on_page,
    read_picture,
    render_page,
)
from trainers.results.model_report import ModelReport

HOSTILE = "<script>alert('x')</script>\"&"
SVG = "{http://www.w3.org/2000/svg}"


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that tags are closed in their order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def close(self) -> None:
        super().close()
        assert self._open == []


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def one_of_each(text: str) -> tuple[PageSection, ...]:
    table = PageTable((text, "n"), ((text, "1"),), caption=text, details=(text,), marked=0)
    blocks = (
        PageText(text, is_warning=True),
        PageBars((Bar(text, text, 0.5, text),)),
        PageColumns((table, PageFacts(((text, text),)))),
        PagePicture("data:image/png;base64,", text),
        PageCode(text, text),
        PageCode(text, text, is_folded=True),
    )
    return (PageSection("all", text, blocks), PageSection("none", "nothing to tell", ()))


def test_text_from_outside_is_escaped_in_every_block() -> None:
    html = render_page(
        HOSTILE, HOSTILE, tiles=[Tile(HOSTILE, HOSTILE, HOSTILE)], sections=one_of_each(HOSTILE), footer=HOSTILE
    )
    plain = render_page("x", "x", tiles=[Tile("x", "x", "x")], sections=one_of_each("x"), footer="x")
    assert read(html).tags == read(plain).tags
    assert "alert('x')" not in html.replace("&#39;", "?")


def test_a_section_without_blocks_is_left_out() -> None:
    html = render_page("x", "x", tiles=[], sections=one_of_each("x"), footer="")
    assert 'id="all"' in html
    assert "nothing to tell" not in html


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    html = render_page("caf\udce9", "x", tiles=[], sections=[], footer="")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    assert "caf?" in html


def test_a_missing_picture_is_left_out_and_a_present_one_is_part_of_the_page(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "here.png")
    found = read_picture(tmp_path / "here.png", "two pixels")
    assert found is not None
    assert found.address.startswith("data:image/png;base64,")
    assert read_picture(tmp_path / "gone.png", "nothing") is None


def draw(path: Path) -> None:
    with new_figure(path, columns=2, width=10.0) as (left, right):
        name_points(left.scatter([1, 2, 3], [1, 2, 3]), ["a & b", "<i>", "c"])
        (line,) = right.plot([1, 2], [1, 2])
        name_points(line, ["the line"])
        right.set_xlabel("a label that is much too long for the width of axes on a page, and is broken into lines")
        write_title(left, "Title", "a detail that is " + "very " * 30 + "long")


@pytest.fixture(scope="module")
def drawn() -> str:
    return str(draw_on_page("figure", draw))


def test_a_drawing_has_titles_of_points_and_lines_and_the_width_of_a_page(drawn: str) -> None:
    root = ET.fromstring(drawn)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == ["a & b", "<i>", "c", "the line"]
    marks = [mark for mark in root.iter(f"{SVG}use") if mark.find(f"{SVG}title") is not None]
    assert len(marks) == 3
    assert root.attrib["viewBox"].startswith("0 0 388.8")
    assert "width" not in root.attrib
    assert any(text.text == "Title" for text in root.iter(f"{SVG}text")), "text stays text"


def test_ids_of_drawings_do_not_collide(drawn: str) -> None:
    other = draw_on_page("matrix", lambda path: confusion_matrix(report("a", "b"), path))
    ids = [set(re.findall(r' id="([^"]+)"', str(one))) for one in (drawn, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_page_names_no_address_to_load_from(drawn: str) -> None:
    section = PageSection("all", "x", (PageDrawings((Markup(drawn),)), *one_of_each("x")[0].blocks))
    reader = read(render_page("x", "x", tiles=[], sections=[section], footer=""))
    loaded = [value for name, value in reader.attributes if name in {"src", "href", "xlink:href", "data", "action"}]
    assert loaded
    assert all(value is not None and value.startswith(("#", "data:")) for value in loaded)
    assert not {"link", "iframe", "object", "embed", "base"} & set(reader.tags)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_class_names_are_drawn_as_they_are(suffix: str, tmp_path: Path) -> None:
    names = (r"$\frac{broken$", "<b>&", "bell\x07", "caf\udce9")
    path = tmp_path / f"matrix{suffix}"
    confusion_matrix(report(*names), path)
    if suffix == ".svg":
        shown = [text.text for text in ET.fromstring(path.read_text(encoding="utf-8")).iter(f"{SVG}text")]
        assert {r"$\frac{broken$", "<b>&", "bell\ufffd", "caf\ufffd"} <= set(shown)


def report(*classes: str) -> ModelReport:
    count = len(classes)
    return ModelReport.model_validate(
        {
            "part": "test",
            "num_images": count,
            "classes": classes,
            "metrics": {"accuracy": {"value": 1.0, "low": None, "high": None, "method": "none"}},
            "baseline": {"name": classes[0], "accuracy": 1 / count},
            "per_class": [],
            "confusion": [[int(row == column) for column in range(count)] for row in range(count)],
            "calibration": {"temperature": 1.0, "ece": 0.0, "ece_uncalibrated": 0.0, "bins": []},
            "num_mistakes": 0,
            "mistakes": [],
        }
    )
