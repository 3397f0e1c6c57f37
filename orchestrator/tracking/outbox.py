"""Sends events to MLflow from a background thread, so that a slow or unreachable MLflow does not affect a study.

The store writes an event in the same transaction as the fact that it describes. The outbox has the tracker deliver the
oldest events, and marks them as delivered. Events that cannot be delivered wait, even beyond the end of the process.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from pydantic import ValidationError

from orchestrator.tracking.events import Event, event_from_json
from orchestrator.tracking.mlflow_client import ExperimentGone, TrackingRejected, TrackingUnavailable

_BATCH_SIZE = 200
_POLL_S = 2.0
"""Time between two rounds. All events of a round cost MLflow little more than one event."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_MAX_INTERNAL_ERRORS = 4
"""Number of internal errors of MLflow on the first event before that event is rejected."""

_logger = logging.getLogger(__name__)


class OutboxStore(Protocol):
    """A queue of waiting events. Called from the outbox's thread; each call is one transaction.

    Only one outbox at a time may deliver the events of a store, because two could start the same run twice.
    """

    def owed(self, limit: int) -> Sequence[tuple[int, str]]:
        """Ids and JSON of the oldest waiting events, in the order in which they were appended."""
        ...

    def settle(self, ids: Sequence[int]) -> None:
        """Mark events as delivered."""
        ...

    def postpone(self, event_id: int, error: str) -> None:
        """Note that MLflow was unreachable when this event was tried; it still waits."""
        ...

    def reject(self, event_id: int, error: str) -> None:
        """Note that MLflow will never accept this event; it is kept with its error, and not tried again."""
        ...

    def start_over(self) -> int:
        """Let all events wait again, in their first order, and forget MLflow's run ids; returns their number."""
        ...

    def count_owed(self) -> int:
        """Number of waiting events."""
        ...


class Deliverer(Protocol):
    """The part of `orchestrator.tracking.mlflow_client.Tracker` that the outbox uses."""

    def deliver(self, events: Sequence[Event]) -> None: ...


class _Delivery:
    """Delivers batches of a store's events.

    Args:
        store: Where the events wait.
        tracker_factory: Makes the tracker, at the first event.
    """

    def __init__(self, store: OutboxStore, tracker_factory: Callable[[], Deliverer]) -> None:
        self._store = store
        self._tracker_factory = tracker_factory
        self._tracker: Deliverer | None = None
        self.num_rejected = 0
        self._suspect = (-1, 0)  # the first event of the latest failures, and its number of internal errors

    def deliver_some(self) -> bool:
        """Deliver one batch, and return whether there may be more.

        Raises:
            TrackingUnavailable: MLflow is unreachable; the remaining events wait.
        """
        rows = self._store.owed(_BATCH_SIZE)
        if not rows:
            return False
        batch = self._decode(rows)
        if self._tracker is None:
            self._tracker = self._tracker_factory()
        try:
            self._tracker.deliver([event for _, event in batch])
        except ExperimentGone as error:
            self._start_over(error)
        except TrackingRejected as error:
            self._settle(batch[: error.num_delivered])
            self._reject(*batch[error.num_delivered], str(error))
        except TrackingUnavailable as error:
            self._settle(batch[: error.num_delivered])
            event_id, event = batch[error.num_delivered]
            if self._fails_repeatedly(event_id, answered=error.answered):
                self._reject(event_id, event, str(error))
            else:
                self._store.postpone(event_id, str(error))
                raise
        else:
            self._settle(batch)
        return True

    def _decode(self, rows: Sequence[tuple[int, str]]) -> list[tuple[int, Event]]:
        """Decode events. Those of another version are rejected, so that the others are delivered."""
        batch: list[tuple[int, Event]] = []
        for event_id, text in rows:
            try:
                batch.append((event_id, event_from_json(text)))
            except ValidationError as error:
                self._store.reject(event_id, f"not an event of this version: {error.errors()[0]['msg']}")
        return batch

    def _settle(self, delivered: Sequence[tuple[int, Event]]) -> None:
        if delivered:
            self._store.settle([event_id for event_id, _ in delivered])

    def _reject(self, event_id: int, event: Event, error: str) -> None:
        self._store.reject(event_id, error)
        self.num_rejected += 1
        # A deleted database rejects each event for the same reason: the others are only counted.
        level = logging.WARNING if self.num_rejected == 1 else logging.DEBUG
        words = "MLflow rejected a %s event (number %d), which will not be sent again: %s"
        _logger.log(level, words, event.kind, event_id, error)

    def _start_over(self, error: ExperimentGone) -> None:
        num_events = self._store.start_over()
        self.num_rejected = 0
        self._tracker = None  # it may remember the experiment that is gone
        _logger.warning("%s. All %d events of the study are sent again.", error, num_events)

    def _fails_repeatedly(self, event_id: int, *, answered: bool) -> bool:
        """Whether MLflow has answered the same first event with an internal error too often."""
        if not answered:
            self._suspect = (-1, 0)
            return False
        suspect, count = self._suspect
        self._suspect = (event_id, count + 1 if suspect == event_id else 1)
        return self._suspect[1] >= _MAX_INTERNAL_ERRORS


class Outbox:
    """Delivers a store's events in order, in the background, from construction until `close`.

    Args:
        store: Where the events wait.
        tracker_factory: Makes the tracker; called in the thread when there is an event to deliver.
        first_pause_s: Pause after a first failure, in seconds; doubled after each further failure, up to one minute.
        poll_s: Time between two rounds, in seconds.
    """

    def __init__(
        self,
        store: OutboxStore,
        tracker_factory: Callable[[], Deliverer],
        *,
        first_pause_s: float = _FIRST_PAUSE_S,
        poll_s: float = _POLL_S,
    ) -> None:
        self._store = store
        self._delivery = _Delivery(store, tracker_factory)
        self._first_pause_s = first_pause_s
        self._poll_s = poll_s
        self._failures = 0
        self._round = 0  # number of the current round
        self._answered_round = 0  # the latest round that delivered everything, or failed
        self._last_error: str | None = None
        self._closing = False
        self._flush_requested = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlflow-outbox", daemon=True)
        self._thread.start()

    @property
    def last_error(self) -> str | None:
        """Why events cannot be delivered at the moment; `None` if they can."""
        return self._last_error

    @property
    def num_rejected(self) -> int:
        """Number of events that MLflow has rejected and that were not sent again since."""
        return self._delivery.num_rejected

    def flush(self, timeout_s: float) -> int:
        """Wait until all events are delivered, MLflow is found to be unreachable, or the time is over.

        Returns:
            Number of events that still wait.
        """
        with self._changed:
            # The current round may have begun before the last event was appended: a later one must answer.
            current = self._round
            self._flush_requested = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answered_round > current or not self._thread.is_alive(), timeout_s)
        return self._store.count_owed()

    def close(self, timeout_s: float = 10.0) -> int:
        """Deliver events for up to `timeout_s` seconds, end the thread, and return the number that still wait."""
        started = time.monotonic()
        owed = self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.1, timeout_s - (time.monotonic() - started)))
        return owed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            with self._changed:
                self._round += 1
            try:
                busy = self._delivery.deliver_some() and not self._closing
                error = None
            except TrackingUnavailable as unavailable:
                busy, error = False, str(unavailable)
            # After any other error (a locked store, a bug here), the events still wait, and the study must continue:
            # log the error and try again later.
            except Exception as unexpected:
                busy, error = False, f"{type(unexpected).__name__}: {unexpected}"
                _logger.debug("delivery to MLflow failed unexpectedly", exc_info=True)
            self._note(error, busy=busy)
            if not busy:
                self._wait()

    def _note(self, error: str | None, *, busy: bool) -> None:
        with self._changed:
            if error is not None and self._failures == 0:
                _logger.warning("%s. Events for MLflow are kept and sent later.", error.rstrip("."))
            elif error is None and self._failures:
                _logger.info("MLflow is reachable again; sending the waiting events.")
            self._failures = 0 if error is None else self._failures + 1
            self._last_error = error
            if not busy:
                self._answered_round = self._round
            self._changed.notify_all()

    def _wait(self) -> None:
        """Wait for the next round, or for `flush` or `close`."""
        with self._changed:
            pause_s = self._poll_s
            if self._failures:
                pause_s = min(self._first_pause_s * 2 ** min(self._failures - 1, 20), _LONGEST_PAUSE_S)
            self._changed.wait_for(lambda: self._flush_requested or self._closing, timeout=pause_s)
            self._flush_requested = False
