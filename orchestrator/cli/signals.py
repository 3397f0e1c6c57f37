"""Ctrl-C and SIGTERM: the first stops cleanly, the second at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.cli.console import note


class StopRequest:
    """A control that a signal handler sets."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        self._event.set()

    def should_stop(self) -> bool:
        return self._event.is_set()


@contextmanager
def stop_on_signal(control: StopRequest) -> Iterator[None]:
    """While inside, the first Ctrl-C or SIGTERM sets `control`; a second one raises KeyboardInterrupt."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if control.should_stop():
            raise KeyboardInterrupt
        control.request()
        note("\nending after this step (once more to end at once) ...")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
