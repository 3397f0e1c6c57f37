"""The service as its own process: commands and browsers use it, and studies run in it."""

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client import Client
from tests.browser import CHROMIUM, CHROMIUM_OPTIONS
from tests.service import GOLDEN
from tests.tiny import CommandLine, start

STUDY = """\
study: sent
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - {stage: screen, space: {name: as-vit, width: 8, depths: [1, 1, 1, 1]}, num_trials: 2, batch_size: 4}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("serve") / "home"))


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """Address of a running service."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start("serve", "--port", str(port), home=home, cwd=home.parent)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        out, err = process.communicate(timeout=300)
    assert process.returncode in (0, -15), out + err
    assert "Traceback" not in err


def without_results(found: Any) -> Any:
    """What a command printed, without the results of stages, in which a service completes those of older versions."""
    if isinstance(found, dict):
        return {**found, "stages": [{**stage, "result": None} for stage in found["stages"]]}
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "finished", "--format", "json"],
        ["status", "interrupted"],
        ["trials", "finished", "--format", "json"],
        ["trials", "finished", "--csv"],
        ["best", "finished"],
        ["compare", "finished", "0", "1", "--no-open"],
        ["diff", "finished", "interrupted"],
        ["diff", "finished", "finishd"],
        ["recommend", "--data", "digits"],
        ["status", "finishd"],
        ["compare", "finished", "99"],
    ],
)
def test_a_command_prints_the_same_as_without_the_service(
    arguments: list[str], url: str, home: Path, command_line: CommandLine
) -> None:
    here = command_line(*arguments, home=home)
    there = command_line(*arguments, "--server", url, home=home)
    also = command_line(*arguments, VITSEARCH_SERVER=url)
    assert (there.status, there.err) == (also.status, also.err) == (here.status, here.err)
    if "json" in arguments:
        assert without_results(there.json()) == without_results(also.json()) == without_results(here.json())
    else:
        assert there.out == also.out == here.out


def test_list_and_delete_reach_the_service(url: str, command_line: CommandLine) -> None:
    rows = command_line("list", "--server", url, "--format", "json").json()
    assert {"finished", "interrupted"} <= {row["study"] for row in rows}
    assert "finished" in command_line("list", "--server", url).out
    refused = command_line("delete", "finishd", "--yes", "--server", url)
    assert (refused.status, "Did you mean 'finished'?" in refused.err) == (1, True)
    gone = command_line("list", "--server", "http://127.0.0.1:1")
    assert (gone.status, "must answer" in gone.err) == (1, True)


def test_a_file_is_checked_by_the_service_that_would_run_it(
    url: str, tmp_path: Path, command_line: CommandLine
) -> None:
    file = tmp_path / "sent.yaml"
    file.write_text(STUDY, encoding="utf-8")
    for done in (command_line("validate", file, "--server", url), command_line("validate", file, VITSEARCH_SERVER=url)):
        assert (done.status, f"study 'sent' is valid at {url}: " in done.out) == (0, True), done.err
    file.write_text(STUDY.replace("study: sent", "study: sent\nsed: 1"), encoding="utf-8")
    here, there = command_line("validate", file), command_line("validate", file, "--server", url)
    assert (there.status, there.err) == (here.status, here.err)
    assert "Did you mean 'seed'?" in there.err
    for arguments in ([file, "--data", "x"], [tmp_path / "none.yaml"]):
        assert command_line("validate", *arguments, "--server", url).status == 2, arguments
    rows = command_line("list", "--server", url, "--format", "json").json()
    assert "sent" not in {row["study"] for row in rows}


def test_a_study_is_submitted_and_cancelled_at_a_service(url: str, tmp_path: Path, command_line: CommandLine) -> None:
    file = tmp_path / "sent.yaml"
    file.write_text(STUDY.replace("study: sent", "study: stopped"), encoding="utf-8")
    sent = command_line("submit", file, "--server", url)
    assert sent.status == 0, sent.err
    assert "study 'stopped' waits for its turn" in sent.out
    assert f"{url}/studies/stopped" in sent.err
    again = command_line("submit", file, VITSEARCH_SERVER=url)
    assert (again.status, "must not be submitted twice at a time" in again.err) == (2, True)
    for stop, seen in (([], "everyone with an access token"), (["--stop"], "only its owner and administrators")):
        assert seen in command_line("share", "stopped", *stop, "--server", url).out
    assert command_line("cancel", "stopped", "--server", url).status == 0
    assert command_line("logs", "stopped", "--server", url).status == 0
    for arguments in (["submit", file, "--data", "x"], ["submit", tmp_path / "none.yaml"], ["cancel", "nothing"]):
        assert command_line(*arguments, "--server", url).status == 2, arguments
    file.write_text(STUDY.replace("study: sent", "study: nothing"), encoding="utf-8")
    assert "there is no study 'nothing'" in command_line("extend", file, "--server", url).err
    assert "there is no study 'nothing'" in command_line("extend", file).err


def test_a_study_is_shared_and_its_champion_and_report_are_copied_from_a_service(
    url: str, home: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    copied, report = tmp_path / "copies" / "model", tmp_path / "report.html"
    assert command_line("download", "finished", "--out", copied, "--server", url).status == 0
    files = {path.relative_to(copied): path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    (champion,) = (path.parent for path in home.rglob("champion/model.safetensors"))
    assert files == {path.relative_to(champion): path.read_bytes() for path in champion.rglob("*") if path.is_file()}
    again = command_line("download", "finished", "--out", copied, VITSEARCH_SERVER=url)
    assert (again.status, "must be a new folder" in again.err) == (2, True)
    assert command_line("report", "finished", "--out", report, "--server", url).status == 0
    assert "finished" in report.read_text(encoding="utf-8")
    for command in (["share", "finished"], ["download", "finished"]):
        alone = command_line(*command)
        assert (alone.status, "no service was named" in alone.err) == (2, True)
    never = command_line("share", "finished", "--server", url)
    assert (never.status, "submit" in never.err) == (2, True), "only submitted studies have a sharing state"
    asked_here = command_line("predict", "finished", "x.png", VITSEARCH_SERVER=url)
    assert (
        f"does not ask the service at {url}: run it on the machine of that service, or copy a champion"
        in asked_here.err
    )
    assert asked_here.err.rstrip().endswith("from there with: vitsearch download finished")


@pytest.mark.slow
def test_a_submitted_study_runs_to_its_end(url: str, tmp_path: Path, command_line: CommandLine) -> None:
    file = tmp_path / "sent.yaml"
    file.write_text(STUDY, encoding="utf-8")
    assert command_line("submit", file, "--server", url, "--format", "json").json()["study"] == "sent"
    watched = command_line("watch", "sent", "--server", url, "--format", "json")
    assert watched.status == 0, watched.err
    assert watched.json()["state"] == "complete"
    assert "screen" in command_line("logs", "sent", "--server", url).out
    with Client(url) as client:
        assert [event.data for event in client.events("sent")][-1] == {"state": "complete"}
        assert [trial["state"] for trial in client.trials("sent")] == ["complete", "complete"]


def test_a_stream_of_events_that_is_cut_again_and_again_has_neither_gaps_nor_repetitions(url: str) -> None:
    whole = told(Client(url))
    with cutting(url, after_bytes=1500) as proxy:
        cut = told(Client(proxy.url))
    assert proxy.num_cuts >= 3
    assert cut == whole
    assert len(whole) > 10


def told(client: Client) -> list[tuple[str, Any]]:
    """The reports and trials of a finished study, as its events tell them."""
    with client:
        events = list(client.events("finished"))
    assert events[-1].kind == "end"
    return [(one.kind, one.data) for one in events if one.kind in ("report", "trial")]


class CuttingProxy:
    """Passes bytes on, and cuts each connection when the server has sent so many."""

    def __init__(self, port: int, after_bytes: int) -> None:
        self._server_port, self._after_bytes = port, after_bytes
        self.num_cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
                server.sendall(client.recv(65536))
                num_left = self._after_bytes
                while num_left and (sent := server.recv(num_left)):
                    client.sendall(sent)
                    num_left -= len(sent)
                self.num_cuts += num_left == 0


@contextmanager
def cutting(url: str, *, after_bytes: int) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(int(url.rpartition(":")[2]), after_bytes)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
        thread.join(60)


def test_clients_that_never_finish_their_requests_hold_up_nobody(url: str) -> None:
    port = int(url.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        for number, connection in enumerate(slow):
            half = b"GET /v1/studies HTTP/1.1\r\nHost: 127" if number % 2 else b"POST /v1/validate HTTP/1.1\r\nHost: x"
            connection.sendall(half)
        with Client(url) as client:
            assert {"finished", "interrupted"} <= {one["study"] for one in client.studies()}
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed, which shows the pages")
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("path", ["/", "/studies/finished"])
def test_a_browser_shows_the_pages_without_errors(path: str, width: int, url: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    picture = tmp_path / "page.png"
    options = [*CHROMIUM_OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", f"--window-size={width},2000", f"--screenshot={picture}"]
    done = subprocess.run([CHROMIUM, *options, url + path], capture_output=True, text=True, check=False, timeout=600)
    assert picture.stat().st_size > 10_000
    assert re.findall(r"CONSOLE.*", done.stderr) == []
