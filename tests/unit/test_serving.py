"""`vitsearch ui` becomes MLflow's server. The process beside it that tells when the server is ready ends with it."""

import os
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.cli import serving
from tests.waiting import until

BECOME = """
import sys
from orchestrator.cli.serving import _become
from orchestrator.tracking.server import ServerCommand
_become(ServerCommand(sys.argv[2:], {}, sys.argv[1]))
"""


def becoming(url: str, *server: str) -> "subprocess.Popen[str]":
    """A process that becomes a command, in a separate process group, as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", BECOME, url, *server], stderr=subprocess.PIPE, text=True, start_new_session=True
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


def test_a_line_tells_when_a_starting_server_answers(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        with (tmp_path / "told").open("wb") as told:
            arguments = [sys.executable, "-c", serving._TELL_WHEN_READY, url, "", str(os.getpid())]
            waiting = subprocess.Popen(arguments, stderr=told)
            server.handle_request()
            assert waiting.wait(timeout=120) == 0
    assert (tmp_path / "told").read_text() == f"MLflow is ready at {url}\n"


@pytest.mark.parametrize(("server", "told"), [("true", ""), ("/no/such/server", "FileNotFoundError")])
def test_nothing_waits_for_a_server_that_ends_at_once(server: str, told: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # refuses connections
        process = becoming(f"http://127.0.0.1:{unused.getsockname()[1]}", server)
        written = ending(process)
    assert told in written if told else written == ""


def test_ctrl_c_while_a_server_starts_ends_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        process = becoming(f"http://127.0.0.1:{silent.getsockname()[1]}", "sleep", "600")
        asking, _ = silent.accept()
        with asking:
            until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")  # it has become the server
            os.killpg(process.pid, signal.SIGINT)
        written = ending(process)
    assert (process.returncode, written) == (-signal.SIGINT, "")
