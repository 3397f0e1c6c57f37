"""An outbox store in memory, and a tracker that records events."""

import threading
from collections.abc import Callable, Sequence

from orchestrator.tracking.events import Event, event_to_json


class MemoryOutboxStore:
    """An `orchestrator.tracking.outbox.OutboxStore` in memory."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self._changed = threading.Condition()
        self._owed: dict[int, Event] = {}
        self._all: dict[int, Event] = {}
        self.starts_over = 0
        self._next_id = 1
        self.settled: list[int] = []
        self.postponed: list[tuple[int, str]] = []
        self.rejected: list[tuple[int, str]] = []
        self.failures: list[Exception] = []
        """Exceptions that the next calls of `owed` raise, one each."""
        self.append(*events)

    def append(self, *events: Event) -> None:
        with self._changed:
            for event in events:
                self._owed[self._next_id] = self._all[self._next_id] = event
                self._next_id += 1

    def owed(self, limit: int) -> Sequence[tuple[int, str]]:
        with self._changed:
            if self.failures:
                raise self.failures.pop(0)
            return [(number, event_to_json(event)) for number, event in sorted(self._owed.items())[:limit]]

    def settle(self, ids: Sequence[int]) -> None:
        with self._changed:
            for event_id in ids:
                del self._owed[event_id]
                self.settled.append(event_id)
            self._changed.notify_all()

    def postpone(self, event_id: int, error: str) -> None:
        with self._changed:
            self.postponed.append((event_id, error))
            self._changed.notify_all()

    def reject(self, event_id: int, error: str) -> None:
        with self._changed:
            del self._owed[event_id]
            self.rejected.append((event_id, error))
            self._changed.notify_all()

    def start_over(self) -> int:
        with self._changed:
            self._owed = dict(self._all)
            self.starts_over += 1
            self._changed.notify_all()
            return len(self._owed)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Wait until the outbox has made a condition true; return whether it did within the timeout."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def count_owed(self) -> int:
        with self._changed:
            return len(self._owed)


class ScriptedTracker:
    """Delivers events into a list; `trouble(event, index)` may raise an exception instead."""

    def __init__(self, trouble: Callable[[Event, int], None] | None = None) -> None:
        self.delivered: list[Event] = []
        self.trouble = trouble

    def deliver(self, events: Sequence[Event]) -> None:
        for index, event in enumerate(events):
            if self.trouble is not None:
                self.trouble(event, index)
            self.delivered.append(event)
