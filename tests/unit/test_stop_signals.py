"""Signals that stop a study: the first one cleanly."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.signals import StopRequest, stop_on_signal

CLOSED_TERMINAL = """
import os, signal, sys
from orchestrator.cli.signals import StopRequest, stop_on_signal
control = StopRequest()
with stop_on_signal(control):
    sys.stderr.write("ready")
    sys.stderr.flush()
    while not control.should_stop():
        signal.pause()
    print("the end", flush=True)
    print("the end", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("stopped cleanly")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_interrupts(number: int) -> None:
    control = StopRequest()
    with stop_on_signal(control):
        signal.raise_signal(number)
        assert control.should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_study_whose_terminal_is_closed_stops_cleanly(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", CLOSED_TERMINAL, str(tmp_path / "result")]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        assert os.read(ours, 100) == b"ready"
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    assert (tmp_path / "result").read_text() == "stopped cleanly"


def test_a_sighup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        control = StopRequest()
        with stop_on_signal(control):
            signal.raise_signal(signal.SIGHUP)
        assert not control.should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)
