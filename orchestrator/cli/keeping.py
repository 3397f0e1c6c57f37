"""Runs MLflow's server until it ends, or until a signal such as Ctrl-C ends it: `python -m orchestrator.cli.keeping`.

`vitsearch ui` becomes this process. It imports little, because it stays as long as the server and must end quickly.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress

_IDLE_LINES = ("Registry store URI not provided.", "[MLflow] Security middleware enabled")
"""How lines begin that MLflow prints at every start, and that tell our users nothing."""
_READY_S = 0.5
_GUARD = """
while read -r _; do :; done
kill -s TERM "$1" 2>/dev/null || exit 0
for _ in 1 2 3 4 5; do
    sleep 1
    kill -s 0 -- "-$1" 2>/dev/null || exit 0
done
kill -s KILL -- "-$1" 2>/dev/null
"""
"""Waits in the shell for the end of this process, which closes its end of a pipe, and then ends the server. It works on
every system, and after SIGKILL."""


def keep(url: str, page: str, argv: Sequence[str]) -> int:
    """Run a server and return its exit status, or 0 if a signal has ended it.

    As soon as it answers, a line tells that it is ready, and the page opens in the browser. The server is in another
    process group, so that Ctrl-C reaches only this process: MLflow would pass it on to its worker a second time, which
    then ends with a traceback. The server also ends if this process is killed.

    Args:
        url: Address of the server.
        page: Address of the page to open; empty for none.
        argv: The command that starts the server.
    """
    server: subprocess.Popen[str] | None = None
    num_signals = 0

    def stop(*_: object) -> None:
        nonlocal num_signals
        num_signals += 1
        if server is not None:
            _end(server, at_once=num_signals > 1)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    server = subprocess.Popen(  # noqa: S603 - our own command
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    guard = subprocess.Popen(  # noqa: S603 - our own command
        ["/bin/sh", "-c", _GUARD, "guard", str(server.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if num_signals:
        stop()
    threading.Thread(target=_tell_when_ready, args=(url, page, server), daemon=True).start()
    passing_on = threading.Thread(target=_pass_on, args=(server,), daemon=True)
    passing_on.start()
    status = server.wait()
    guard.kill()
    guard.wait()
    with suppress(ProcessLookupError):  # a worker that its MLflow has left behind
        os.killpg(server.pid, signal.SIGKILL)
    passing_on.join()
    return 0 if num_signals else status if status >= 0 else 128 - status


def _pass_on(server: "subprocess.Popen[str]") -> None:
    """Write what the server writes to stderr, except for the idle lines."""
    assert server.stdout is not None
    for line in server.stdout:
        if not line.startswith(_IDLE_LINES):
            _tell(line)


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _end(server: "subprocess.Popen[str]", *, at_once: bool) -> None:
    with suppress(ProcessLookupError):
        if at_once:
            os.killpg(server.pid, signal.SIGKILL)
        else:
            server.terminate()


def _tell_when_ready(url: str, page: str, server: "subprocess.Popen[str]") -> None:
    """Ask a server until it answers or has ended."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()  # noqa: S310 - our own address
        except OSError:
            time.sleep(_READY_S)
            continue
        _tell(f"MLflow is ready at {url}\n")
        if page:
            import webbrowser

            webbrowser.open(page)
        return


if __name__ == "__main__":
    raise SystemExit(keep(sys.argv[1], sys.argv[2], sys.argv[3:]))
