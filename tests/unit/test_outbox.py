"""The outbox: order, failures of MLflow and of the store, poisoned events; all with fakes."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.tracking.events import Event, SetTags
from orchestrator.tracking.mlflow_client import TrackingRejected, TrackingUnavailable
from orchestrator.tracking.outbox import Outbox
from tests.fakes_tracking import MemoryOutboxStore, ScriptedTracker


def tags(*numbers: int) -> list[SetTags]:
    return [SetTags(key="run/1", tags={"number": str(number)}) for number in numbers]


def number(event: Event) -> int:
    assert isinstance(event, SetTags)
    return int(event.tags["number"])


@contextmanager
def running(store: MemoryOutboxStore, tracker: ScriptedTracker, *, gather_s: float = 0.0) -> Iterator[Outbox]:
    outbox = Outbox(store, lambda: tracker, first_pause_s=0.01, gather_s=gather_s)
    try:
        yield outbox
    finally:
        outbox.close(timeout_s=1.0)


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_events_are_delivered_in_order_over_several_batches() -> None:
    store, tracker = MemoryOutboxStore(tags(*range(1, 501))), ScriptedTracker()
    with running(store, tracker) as outbox:
        assert outbox.flush(5.0) == 0
    assert [number(event) for event in tracker.delivered] == list(range(1, 501))
    assert store.settled == list(range(1, 501))


def test_events_appended_later_are_delivered_after_notify() -> None:
    store, tracker = MemoryOutboxStore(), ScriptedTracker()
    with running(store, tracker) as outbox:
        assert outbox.flush(5.0) == 0
        store.append(*tags(1))
        outbox.notify()
        assert eventually(lambda: len(tracker.delivered) == 1, timeout_s=1.0)


def test_what_comes_within_a_short_time_is_delivered_together() -> None:
    store, tracker = MemoryOutboxStore(), ScriptedTracker()
    with running(store, tracker, gather_s=60.0) as outbox:
        assert outbox.flush(5.0) == 0
        for one in tags(1, 2, 3):
            store.append(one)
            outbox.notify()
        assert tracker.delivered == []
        assert outbox.flush(5.0) == 0  # whoever waits for it does not wait for more
    assert len(tracker.delivered) == 3


def test_a_poisoned_event_is_set_aside_with_its_error_and_the_others_arrive() -> None:
    def refuse_three(event: Event, index: int) -> None:
        if number(event) == 3:
            raise TrackingRejected("must be a number", num_delivered=index)

    store, tracker = MemoryOutboxStore(tags(1, 2, 3, 4, 5)), ScriptedTracker(refuse_three)
    with running(store, tracker) as outbox:
        assert outbox.flush(5.0) == 0
    assert [number(event) for event in tracker.delivered] == [1, 2, 4, 5]
    assert store.rejected == [(3, "must be a number")]


def test_what_was_delivered_before_mlflow_went_away_is_settled_and_the_rest_follows_in_order() -> None:
    away = threading.Event()
    away.set()

    def go_away_at_three(event: Event, index: int) -> None:
        if number(event) >= 3 and away.is_set():
            raise TrackingUnavailable("connection refused", num_delivered=index)

    store, tracker = MemoryOutboxStore(tags(1, 2, 3, 4, 5)), ScriptedTracker(go_away_at_three)
    with running(store, tracker) as outbox:
        assert outbox.flush(5.0) == 3
        assert store.settled == [1, 2]
        assert store.postponed[0] == (3, "connection refused")
        assert outbox.last_error == "connection refused"
        away.clear()
        assert eventually(lambda: store.count_owed() == 0)
        assert eventually(lambda: outbox.last_error is None)
    assert [number(event) for event in tracker.delivered] == [1, 2, 3, 4, 5]
    assert store.rejected == []


def test_flush_returns_at_once_when_mlflow_is_away() -> None:
    def refuse_connection(event: Event, index: int) -> None:
        raise TrackingUnavailable("connection refused", num_delivered=index)

    with running(MemoryOutboxStore(tags(1, 2)), ScriptedTracker(refuse_connection)) as outbox:
        started = time.monotonic()
        assert outbox.flush(60.0) == 2
        assert time.monotonic() - started < 5.0


def test_an_event_on_which_mlflow_fails_internally_again_and_again_is_set_aside() -> None:
    def fail_on_two(event: Event, index: int) -> None:
        if number(event) == 2:
            raise TrackingUnavailable("internal error", num_delivered=index, answered=True)

    store, tracker = MemoryOutboxStore(tags(1, 2, 3)), ScriptedTracker(fail_on_two)
    with running(store, tracker):
        assert eventually(lambda: store.count_owed() == 0)
    assert [number(event) for event in tracker.delivered] == [1, 3]
    assert store.rejected == [(2, "internal error")]


def test_an_event_is_never_set_aside_because_mlflow_is_away_for_long() -> None:
    rounds = 0

    def refuse_connection(event: Event, index: int) -> None:
        nonlocal rounds
        rounds += 1
        raise TrackingUnavailable("connection refused", num_delivered=index)

    store = MemoryOutboxStore(tags(1))
    with running(store, ScriptedTracker(refuse_connection)):
        assert eventually(lambda: rounds >= 6)
    assert store.rejected == []
    assert store.count_owed() == 1


def test_a_locked_store_does_not_end_the_thread() -> None:
    store, tracker = MemoryOutboxStore(tags(1)), ScriptedTracker()
    store.failures = [sqlite3.OperationalError("database is locked") for _ in range(3)]
    with running(store, tracker):
        assert eventually(lambda: store.count_owed() == 0)
    assert len(tracker.delivered) == 1


def test_a_tracker_that_cannot_be_made_yet_is_made_later() -> None:
    store, tracker = MemoryOutboxStore(tags(1)), ScriptedTracker()
    attempts = 0

    def make() -> ScriptedTracker:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise TrackingUnavailable("disk full")
        return tracker

    outbox = Outbox(store, make, first_pause_s=0.01)
    assert eventually(lambda: store.count_owed() == 0)
    outbox.close()
    assert attempts == 3


def test_notify_and_append_do_not_wait_for_a_slow_mlflow() -> None:
    release = threading.Event()

    def hang(event: Event, index: int) -> None:
        release.wait(10.0)

    store = MemoryOutboxStore(tags(1))
    with running(store, ScriptedTracker(hang)) as outbox:
        started = time.monotonic()
        for _ in range(1000):
            outbox.notify()
        assert time.monotonic() - started < 0.5
        assert outbox.flush(0.05) == 1
        release.set()
        assert outbox.flush(5.0) == 0


def test_close_ends_the_thread_and_says_what_is_still_owed() -> None:
    def refuse_connection(event: Event, index: int) -> None:
        raise TrackingUnavailable("connection refused", num_delivered=index)

    outbox = Outbox(MemoryOutboxStore(tags(1, 2)), lambda: ScriptedTracker(refuse_connection))
    assert outbox.close(timeout_s=5.0) == 2
    assert eventually(lambda: all(thread.name != "mlflow-outbox" for thread in threading.enumerate()))
