"""The display of the decoding of images."""

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.decoding import LiveDecoding, PlainDecoding, show_decoding
from orchestrator.cli.progress import StageLine
from tests.tiny import CommandLine
from tests.unit.test_data import config, encoded, make_folder, picture
from trainers.data.cache_settings import CACHE_VARIABLE, use_cache
from trainers.data.images import load_images


def test_a_live_line_counts_images_and_then_makes_room() -> None:
    shown: list[StageLine | None] = []
    tell = LiveDecoding(shown.append)
    for done in range(31):
        tell(done, 40)
    assert len(shown) == 1
    console = Console(file=StringIO(), width=80)
    console.print(shown[0])
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().startswith("images")
    assert "  30/40  " in console.file.getvalue()
    for done in range(31, 41):
        tell(done, 40)
    assert shown[1:] == [None]


def test_plain_lines_are_ten_seconds_apart() -> None:
    now = 0.0
    console = Console(file=StringIO(), width=80)
    tell = PlainDecoding(console, clock=lambda: now)
    tell(0, 100)
    for done in range(1, 101):
        now += 0.25
        tell(done, 100)
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines() == [
        "images: 40 of 100 decoded; about 15 s left",
        "images: 80 of 100 decoded; about 5 s left",
    ]
    now += 60
    tell(1, 20)
    assert len(console.file.getvalue().splitlines()) == 2


def test_decoding_is_shown_in_a_terminal_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    use_cache(tmp_path / "cache", 1.0)
    source = make_folder(tmp_path / "pets", count=50)
    console = Console(file=StringIO(), width=80, force_terminal=True)
    with show_decoding(console):
        load_images(config(source))
    assert isinstance(console.file, StringIO)
    assert "images" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[2K")  # the line is erased


def test_decoded_images_are_kept_in_the_home(command_line: CommandLine, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "pets", count=20)
    load_images.cache_clear()
    assert command_line("data", source, VITSEARCH_CACHE_FOLDER="").status == 0
    assert len(list((command_line.home / "cache").glob("*.pixels"))) == 2
    load_images.cache_clear()
    assert command_line("data", source, VITSEARCH_CACHE_FOLDER="", VITSEARCH_CACHE_GIB="0").status == 0
    done = command_line("data", source, VITSEARCH_CACHE_GIB="much")
    assert done.status == 2
    assert "VITSEARCH_CACHE_GIB" in done.err


def test_verify_finds_images_whose_files_have_the_same_size_and_time(command_line: CommandLine, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "pets", count=20)
    before = command_line("data", source, "--image-size", "8", "--format", "json").json()
    for path in source.glob("*/*.png"):
        stamp = path.stat()
        path.write_bytes(encoded(picture(60)).ljust(stamp.st_size, b"\0"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert path.stat().st_size == stamp.st_size
    load_images.cache_clear()
    assert command_line("data", source, "--image-size", "8", "--format", "json").json()["mean"] == before["mean"]
    load_images.cache_clear()
    found = command_line("data", source, "--image-size", "8", "--format", "json", "--verify").json()
    assert found["mean"] == pytest.approx([60 / 255, 0, 195 / 255], abs=1e-5)
