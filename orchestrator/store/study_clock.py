"""The clock of a study: corrections of the machine's clock move no time backwards and make no duration wrong."""

import time


class StudyClock:
    """Seconds since 1970, UTC: the machine's clock when an execution begins, and from then on a monotonic one.

    Times of a study therefore never decrease, also not from one execution to the next, and their differences are
    durations. Before an execution begins, this is the machine's clock.
    """

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def begin(self, *, not_before: float = 0.0) -> float:
        """Begin an execution now, but not before the newest time of the study; returns the time."""
        steady = time.monotonic()
        self._offset_s = max(time.time(), not_before) - steady
        return steady + self._offset_s

    def now(self) -> float:
        """The time."""
        return time.time() if self._offset_s is None else time.monotonic() + self._offset_s
