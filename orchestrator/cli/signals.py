"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal): the first one stops cleanly, the second one stops at once."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.abrupt_end import GRACE_S, AbruptEnd
from orchestrator.cli.console import note, stderr
from orchestrator.cli.exit_status import INTERRUPTED


class StopRequest:
    """A stop request that a signal handler can set."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        self._event.set()

    def should_stop(self) -> bool:
        return self._event.is_set()


@contextmanager
def stop_on_signal(
    control: StopRequest, *, grace_s: float = GRACE_S, last_words: str = "interrupted"
) -> Iterator[None]:
    """Within the context, the first Ctrl-C, SIGTERM or SIGHUP sets `control`; the second one raises KeyboardInterrupt.

    If the process has not left the context within `grace_s` seconds after it, the process and its children are killed,
    and `last_words` are shown. A SIGHUP that is ignored, as under `nohup`, stays ignored.
    """

    def say_interrupted() -> None:
        stderr.show_cursor(True)  # a live display hides it
        note(f"vitsearch: {last_words}")

    end = AbruptEnd(grace_s=grace_s, say=say_interrupted)

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if control.should_stop():
            end.start(INTERRUPTED)
            raise KeyboardInterrupt
        control.request()
        note("stopping after this step (press Ctrl-C again to stop at once) ...")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        end.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Write nothing more to a terminal that is closed, since that would be an error. Files and pipes stay open."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
