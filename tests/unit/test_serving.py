"""`vitsearch ui` runs MLflow's server, tells when it is ready, and ends it at Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.waiting import until

KEEP = """
import sys
from orchestrator.cli.serving import _keep
from orchestrator.tracking.server import ServerCommand
_keep(ServerCommand(sys.argv[2:], {}, sys.argv[1]))
"""
LIKE_MLFLOW = """
import signal, subprocess, sys, time
ended = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); print('ready', flush=True)"
worker = subprocess.Popen([sys.executable, "-c", ended + "; signal.pause()"], stdout=subprocess.PIPE)
worker.stdout.readline()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: worker.send_signal(number))
print("Registry store URI not provided. Using backend store URI.", flush=True)
print("[MLflow] Security middleware enabled with default settings", file=sys.stderr, flush=True)
print("a warning", file=sys.stderr, flush=True)
sys.exit(worker.wait())
"""
"""Passes signals on to its worker, as MLflow does. A second one, as from the terminal, would show a traceback."""


def keeping(url: str, *server: str) -> "subprocess.Popen[str]":
    """A process that runs a server, in a separate process group, as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", KEEP, url, *server], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ending(process: "subprocess.Popen[str]") -> str:
    """What a process wrote to stderr, as soon as it and all processes that it started have ended."""
    return process.communicate(timeout=60)[1]


class Health(BaseHTTPRequestHandler):
    """The page that tells whether a server is ready."""

    def do_GET(self) -> None:
        """Answer that it is."""
        self.send_response(200)
        self.end_headers()


def test_a_line_tells_when_a_starting_server_answers() -> None:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        process = keeping(url, "sleep", "600")
        server.handle_request()
        assert process.stderr is not None
        told = process.stderr.readline()
        process.terminate()
        assert (told, ending(process), process.returncode) == (f"MLflow is ready at {url}\n", "", 0)


@pytest.mark.parametrize(("server", "told"), [("true", ""), ("false", ""), ("/no/such/server", "FileNotFoundError")])
def test_nothing_waits_for_a_server_that_ends_at_once(server: str, told: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # refuses connections
        process = keeping(f"http://127.0.0.1:{unused.getsockname()[1]}", server)
        written = ending(process)
    assert told in written if told else written == ""
    assert (process.returncode == 0) == (server == "true")


def test_ctrl_c_ends_a_server_and_its_worker_once_and_only_its_own_lines_were_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = keeping(f"http://127.0.0.1:{silent.getsockname()[1]}", sys.executable, "-c", LIKE_MLFLOW)
        assert process.stderr is not None
        assert process.stderr.readline() == "a warning\n"
        os.killpg(process.pid, signal.SIGINT)
        written = ending(process)
    assert (process.returncode, written) == (0, "")


def processes_of(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its_session, *_ = entry.read_text().rpartition(")")[2].split()
            if int(its_session) == session and state != "Z":
                found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes in /proc")
@pytest.mark.parametrize("ignores", [False, True])
def test_a_server_and_its_worker_end_if_their_keeper_is_killed(tmp_path: Path, *, ignores: bool) -> None:
    pid = tmp_path / "pid"
    note = f"import os, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    server = LIKE_MLFLOW.replace("sys.exit(worker.wait())", f"{note}\nsys.exit(worker.wait())")
    if ignores:
        server = server.replace("worker.send_signal(number)", "None")
    process = keeping("http://127.0.0.1:9", sys.executable, "-c", server)
    until(lambda: pid.exists() and pid.read_text() != "")
    session = int(pid.read_text())
    assert len(processes_of(session)) == 2
    process.kill()
    process.wait()
    until(lambda: not processes_of(session))


def test_a_second_ctrl_c_ends_a_server_that_does_not_end(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stubborn = f"trap 'echo told >{tmp_path}/told' TERM; echo $$ >{pid}; while true; do sleep 0.1; done"
    process = keeping("http://127.0.0.1:9", "sh", "-c", stubborn)
    until(lambda: pid.exists() and pid.read_text() != "")
    os.killpg(process.pid, signal.SIGINT)
    until((tmp_path / "told").exists)
    os.killpg(process.pid, signal.SIGINT)
    assert (ending(process), process.returncode) == ("", 0)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
