"""Detects when the training in this process stops making progress."""

import threading
import time
from collections.abc import Callable, Set


class Watchdog:
    """A thread that acts if the running training makes no progress (a batch, an epoch's report) for too long.

    The trainings of a pack share one timer, because they all hang when one does. A training that hangs in a device
    driver or a lost file system blocks its thread. The only remedy is to end the process, which `on_timeout` must do.

    Args:
        timeout_s: Seconds without progress.
        on_timeout: Called in the watchdog's thread with the numbers of the trials in training.
    """

    def __init__(self, timeout_s: float, on_timeout: Callable[[Set[int]], None]) -> None:
        self._timeout_s = timeout_s
        self._on_timeout = on_timeout
        self._trials: frozenset[int] = frozenset()
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._is_started = False

    def start(self, trial: int) -> None:
        """Watch a training that is about to run or continue."""
        with self._changed:
            self._trials |= {trial}
            self._deadline = time.monotonic() + self._timeout_s
            if not self._is_started:
                self._is_started = True
                threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            self._changed.notify_all()

    def reset(self) -> None:
        """Record progress and restart the timer."""
        self._deadline = time.monotonic() + self._timeout_s

    def suspend(self) -> None:
        """Stop the timer until the next `reset`, while the training waits for the study."""
        self._deadline = None

    def stop(self, trial: int) -> None:
        """Stop watching a training, which has ended or is suspended."""
        with self._changed:
            self._trials -= {trial}
            self._deadline = None

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._trials:
                    self._changed.wait()
                left_s = self._timeout_s if self._deadline is None else self._deadline - time.monotonic()
                trials = self._trials
            if not trials:
                continue
            if left_s > 0:
                time.sleep(min(left_s, self._timeout_s))
            else:
                self.suspend()
                self._on_timeout(trials)
