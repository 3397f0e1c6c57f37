"""Notices that the training in this process gives no sign of life any more."""

import threading
import time
from collections.abc import Callable, Set


class Watchdog:
    """A thread that acts when what trains has been silent for too long. A batch, an epoch's report is a sign of life.

    Trainings of a pack live and hang together: a sign of one is a sign of all. What hangs (a device's driver, a file
    system that has gone) holds the thread that trains, and nothing in the same process can take it back: who is called
    must end the process.

    Args:
        silent_s: Seconds.
        bite: Called in the watchdog's thread, with the numbers of the trials that are being trained.
    """

    def __init__(self, silent_s: float, bite: Callable[[Set[int]], None]) -> None:
        self._silent_s = silent_s
        self._bite = bite
        self._trials: frozenset[int] = frozenset()
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._is_started = False

    def begin(self, trial: int) -> None:
        """A training is about to run, or to run on."""
        with self._changed:
            self._trials |= {trial}
            self._deadline = time.monotonic() + self._silent_s
            if not self._is_started:
                self._is_started = True
                threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            self._changed.notify_all()

    def hear(self) -> None:
        """It gives a sign of life."""
        self._deadline = time.monotonic() + self._silent_s

    def look_away(self) -> None:
        """It waits for us, not we for it; until the next sign of life."""
        self._deadline = None

    def pause(self, trial: int) -> None:
        """It does not run for now, or has ended."""
        with self._changed:
            self._trials -= {trial}
            self._deadline = None

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._trials:
                    self._changed.wait()
                left = self._silent_s if self._deadline is None else self._deadline - time.monotonic()
                trials = self._trials
            if not trials:
                continue
            if left > 0:
                time.sleep(min(left, self._silent_s))
            else:
                self.look_away()
                self._bite(trials)
