"""The outbox: order, failures of MLflow and of the store, poisoned events; all with fakes."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.tracking.events import Event, SetTags
from orchestrator.tracking.mlflow_client import ExperimentGone, TrackingRejected, TrackingUnavailable
from orchestrator.tracking.outbox import Outbox
from tests.fakes_tracking import MemoryOutboxStore, ScriptedTracker


def tags(*numbers: int) -> list[SetTags]:
    return [SetTags(key="run/1", tags={"number": str(number)}) for number in numbers]


def number(event: Event) -> int:
    assert isinstance(event, SetTags)
    return int(event.tags["number"])


LONG_S = 300.0
"""Longer than any test waits: a step that needs it fails."""


@contextmanager
def running(
    store: MemoryOutboxStore, tracker: ScriptedTracker, *, pause_s: float = 0.01, poll_s: float = 0.01
) -> Iterator[Outbox]:
    outbox = Outbox(store, lambda: tracker, first_pause_s=pause_s, poll_s=poll_s)
    try:
        yield outbox
    finally:
        outbox.close(timeout_s=1.0)


def test_events_are_delivered_in_order_over_several_batches() -> None:
    store, tracker = MemoryOutboxStore(tags(*range(1, 501))), ScriptedTracker()
    with running(store, tracker) as outbox:
        assert outbox.flush(3600.0) == 0
    assert [number(event) for event in tracker.delivered] == list(range(1, 501))
    assert store.settled == list(range(1, 501))


def test_events_appended_later_are_delivered_in_a_later_round() -> None:
    store, tracker = MemoryOutboxStore(), ScriptedTracker()
    with running(store, tracker) as outbox:
        assert outbox.flush(3600.0) == 0
        store.append(*tags(1))
        assert store.wait_until(lambda: store.settled == [1])


def test_events_wait_for_the_next_round_unless_they_are_flushed() -> None:
    store, tracker = MemoryOutboxStore(), ScriptedTracker()
    with running(store, tracker, poll_s=LONG_S) as outbox:
        assert outbox.flush(3600.0) == 0
        for one in tags(1, 2, 3):
            store.append(one)
        assert tracker.delivered == []
        assert outbox.flush(3600.0) == 0
    assert len(tracker.delivered) == 3


def test_poisoned_events_are_rejected_with_their_errors_and_the_others_arrive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_two(event: Event, index: int) -> None:
        if number(event) in (3, 4):
            raise TrackingRejected(f"{number(event)} must be a number", num_delivered=index)

    store, tracker = MemoryOutboxStore(tags(1, 2, 3, 4, 5)), ScriptedTracker(refuse_two)
    with running(store, tracker) as outbox:
        assert outbox.flush(3600.0) == 0
        assert outbox.num_rejected == 2
    assert [number(event) for event in tracker.delivered] == [1, 2, 5]
    assert store.rejected == [(3, "3 must be a number"), (4, "4 must be a number")]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.endswith("3 must be a number")


def test_all_events_are_sent_again_if_their_experiment_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    gone = threading.Event()

    def lose_experiment(event: Event, _: int) -> None:
        if number(event) == 3 and not gone.is_set():
            gone.set()
            raise ExperimentGone("digits")

    store, tracker = MemoryOutboxStore(tags(1, 2)), ScriptedTracker(lose_experiment)
    with running(store, tracker) as outbox:
        assert outbox.flush(3600.0) == 0
        store.append(*tags(3))
        assert outbox.flush(3600.0) == 0
    assert [number(event) for event in tracker.delivered] == [1, 2, 1, 2, 3]
    assert store.starts_over == 1
    assert "MLflow no longer has the experiment 'digits'. All 3 events of the study are sent again" in caplog.text


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
        assert store.wait_until(lambda: store.settled == [1, 2, 3, 4, 5])
        assert outbox.flush(5.0) == 0
        assert outbox.last_error is None
    assert [number(event) for event in tracker.delivered] == [1, 2, 3, 4, 5]
    assert store.rejected == []


def test_flush_returns_at_once_when_mlflow_is_away() -> None:
    def refuse_connection(event: Event, index: int) -> None:
        raise TrackingUnavailable("connection refused", num_delivered=index)

    store = MemoryOutboxStore(tags(1, 2))
    with running(store, ScriptedTracker(refuse_connection), pause_s=LONG_S) as outbox:
        assert outbox.flush(LONG_S) == 2
        assert len(store.postponed) <= 2  # the first round, and the one that `flush` asked for


def test_an_event_that_repeatedly_causes_internal_errors_is_rejected() -> None:
    def fail_on_two(event: Event, index: int) -> None:
        if number(event) == 2:
            raise TrackingUnavailable("internal error", num_delivered=index, answered=True)

    store, tracker = MemoryOutboxStore(tags(1, 2, 3)), ScriptedTracker(fail_on_two)
    with running(store, tracker):
        assert store.wait_until(lambda: store.count_owed() == 0)
    assert [number(event) for event in tracker.delivered] == [1, 3]
    assert store.rejected == [(2, "internal error")]


def test_an_event_is_never_rejected_because_mlflow_is_unreachable_for_long() -> None:
    def refuse_connection(event: Event, index: int) -> None:
        raise TrackingUnavailable("connection refused", num_delivered=index)

    store = MemoryOutboxStore(tags(1))
    with running(store, ScriptedTracker(refuse_connection)):
        assert store.wait_until(lambda: len(store.postponed) >= 6)
    assert store.rejected == []
    assert store.count_owed() == 1


def test_a_locked_store_does_not_end_the_thread() -> None:
    store, tracker = MemoryOutboxStore(tags(1)), ScriptedTracker()
    store.failures = [sqlite3.OperationalError("database is locked") for _ in range(3)]
    with running(store, tracker):
        assert store.wait_until(lambda: store.count_owed() == 0)
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
    assert store.wait_until(lambda: store.count_owed() == 0)
    outbox.close()
    assert attempts == 3


def test_flush_gives_up_on_a_slow_mlflow_and_what_it_takes_later_is_settled() -> None:
    release = threading.Event()

    def hang(event: Event, index: int) -> None:
        release.wait(LONG_S)

    store = MemoryOutboxStore(tags(1))
    with running(store, ScriptedTracker(hang)) as outbox:
        assert outbox.flush(0.05) == 1
        release.set()
        assert store.wait_until(lambda: store.settled == [1])


def test_close_ends_the_thread_and_says_what_is_still_owed() -> None:
    def refuse_connection(event: Event, index: int) -> None:
        raise TrackingUnavailable("connection refused", num_delivered=index)

    before = set(threading.enumerate())
    outbox = Outbox(MemoryOutboxStore(tags(1, 2)), lambda: ScriptedTracker(refuse_connection))
    (thread,) = (one for one in set(threading.enumerate()) - before if one.name == "mlflow-outbox")
    assert outbox.close(timeout_s=5.0) == 2
    thread.join(LONG_S)
    assert not thread.is_alive()
