"""Paths that lead to devices and pipes, are too long or contain null bytes; interrupts at the start; no memory."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.cli.exit_status import exit_without_resources
from trainers.config import DataConfig
from trainers.data.listing import DataError, DataFindings, Item
from trainers.data.pixels import BrokenImageError, decode
from trainers.data.sources import list_parts
from trainers.yaml_source import SpecError, read_yaml


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/dev/zero", "device or a pipe"),
        ("pipe", "device or a pipe"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "does not exist"),
        ("/etc/hostname/x", "does not exist"),
    ],
)
def test_a_source_must_be_a_folder_or_a_file(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(DataError, match=message):
        list_parts(DataConfig(source=source), DataFindings())


def test_a_pipe_among_the_images_is_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{index}.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    findings = DataFindings()
    list_parts(DataConfig(source=str(tmp_path)), findings)
    assert findings.skipped["a device or a pipe"].count == 1


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BrokenImageError, match="device or a pipe"):
        decode(Item("pipe.png", tmp_path / "pipe.png"), scales={}, background="white", side=8)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"[1, 2]", None),
        (b'{"info": 5}', None),
        (b'{"info": {"features": [1]}}', None),
        (b"no JSON", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b'{"info": {"features": {"label": {"names": 5}}}}', "must be a list of texts, but are 5"),
        (b'{"info": {"features": {"label": {"names": [1, {}]}}}}', "must be a list of texts"),
    ],
)
def test_metadata_of_another_kind_are_told_or_unused(metadata: bytes, message: str | None, tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([{"bytes": b"x", "path": None}] * 2), "label": ["cat", "dog"]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "images.parquet")
    config = DataConfig(source=str(tmp_path / "images.parquet"))
    if message is None:
        assert list_parts(config, DataFindings())[0] == ("cat", "dog")
    else:
        with pytest.raises(DataError, match=message):
            list_parts(config, DataFindings())


def test_text_with_a_null_byte_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text('study: a\ndata: {source: "a\\0b"}\n')
    with pytest.raises(SpecError, match=r"study.yaml:2: data.source: .*null byte"):
        read_yaml(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "x: File name too long"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            "/root/x must be usable",
        ),
        (MemoryError(), "more memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "more memory"),
    ],
)
def test_errors_of_the_system_are_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_without_resources():
        raise error
    assert caught.value.code == 1
    assert message.replace("x: ", "x must be usable, but: ") in capsys.readouterr().err.replace("\n", " ")


def test_other_errors_keep_their_traceback() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "No such file"), ImportError("no module")):
        with pytest.raises(type(error)), exit_without_resources():
            raise error


def test_ctrl_c_while_the_command_line_is_imported_ends_at_once() -> None:
    code = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "orchestrator.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
from vitsearch.__main__ import main
sys.meta_path.insert(0, Finder())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "vitsearch: interrupted\n")


def test_a_command_ends_without_a_last_search_for_garbage() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # runs last
from vitsearch.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["True"]


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child inherits it, as in a script's `vitsearch ... &`
    try:
        code = "import signal, sys\nfrom vitsearch.__main__ import main\nsys.argv[1:] = ['--help']\n" + (
            "try:\n    main()\nexcept SystemExit:\n    print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.stdout.splitlines()[-1] == "True"
