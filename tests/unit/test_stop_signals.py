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
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests are run under nohup
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
SLOW_END = """
import multiprocessing, signal, sys, time
from pathlib import Path
from orchestrator.abrupt_end import before_abrupt_end
from orchestrator.cli.signals import StopRequest, stop_on_signal

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
child.start()
before_abrupt_end(lambda: Path(sys.argv[1]).write_text("removed"))
with stop_on_signal(StopRequest(), last_words="interrupted. Resume with: vitsearch run tiny.yaml"):
    try:
        print(child.pid, flush=True)  # both signals may come before this returns
        while True:
            signal.pause()
    except KeyboardInterrupt:
        time.sleep(600)  # the clean-up
"""
QUICK_END = """
import signal
from orchestrator.cli.signals import StopRequest, stop_on_signal

try:
    with stop_on_signal(StopRequest(), grace_s=5):  # enough on a busy machine
        print("ready", flush=True)
        while True:
            signal.pause()
except KeyboardInterrupt:
    print("left", flush=True)
import time
time.sleep(7)
print("ended by itself", flush=True)
"""
BLOCKED_TERMINAL = """
import multiprocessing, time
from orchestrator.abrupt_end import AbruptEnd

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
child.start()
print(child.pid, flush=True)
AbruptEnd(grace_s=0.1, say=lambda: time.sleep(600)).start(130)
time.sleep(600)
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
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
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


def start(code: str, *arguments: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Send the first Ctrl-C, and the second one when the first was answered."""
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert b"stopping after this step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:1]
    except OSError:
        return False


def test_a_second_signal_does_not_wait_for_a_slow_end(tmp_path: Path) -> None:
    with start(SLOW_END, tmp_path / "left") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_alive(child)
        interrupt(process)
        assert process.wait(120) == 130  # the clean-up would take 600 s
        assert process.stderr is not None
        assert process.stderr.read() == b"vitsearch: interrupted. Resume with: vitsearch run tiny.yaml\n"
    assert not is_alive(child)
    assert (tmp_path / "left").read_text() == "removed"


def test_a_quick_end_after_a_second_signal_is_left_alone() -> None:
    with start(QUICK_END) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        interrupt(process)
        assert process.stdout.read() == b"left\nended by itself\n"
        assert process.wait(60) == 0


def test_a_terminal_that_is_blocked_does_not_prevent_an_abrupt_end() -> None:
    with start(BLOCKED_TERMINAL) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.wait(120) == 130
    assert not is_alive(child)
