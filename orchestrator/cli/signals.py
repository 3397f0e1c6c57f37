"""Ctrl-C and SIGTERM: the first one stops cleanly, the second one stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.cli.console import note


class StopRequest:
    """A stop request that a signal handler can set."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        self._event.set()

    def should_stop(self) -> bool:
        return self._event.is_set()


@contextmanager
def stop_on_signal(control: StopRequest) -> Iterator[None]:
    """Within the context, the first Ctrl-C or SIGTERM sets `control`; the second one raises KeyboardInterrupt."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if control.should_stop():
            raise KeyboardInterrupt
        control.request()
        note("stopping after this step (press Ctrl-C again to stop at once) ...")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
