"""Waits in tests for what other processes do."""

import time
from collections.abc import Callable

TIMEOUT_S = 300.0


def until(condition: Callable[[], object], *, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until a condition is true, and fail after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
