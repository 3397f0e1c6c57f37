"""Follows a study: events that tell a client everything that it does not know yet.

The position in this stream is a cursor that depends on rows alone, not on clocks or on this process: the newest trial
that is known, and the number of epochs that are known of each trial that was not finished. A client that sends its last
cursor misses nothing, on any replica. States are sent again after a new connection, because they are snapshots; of
reports, only those of a trial that was finished and runs again may be sent twice.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.api.home import VisibleStudies
from orchestrator.reports.standing import study_standing
from orchestrator.store.records import FINISHED
from orchestrator.study.access import UnknownStudyError

_CURSOR = re.compile(r"\d{1,18}(;\d{1,18}:\d{1,18}(,\d{1,18}:\d{1,18})*)?", re.ASCII)
_MAX_CURSOR = 100_000
_ENDED = ("complete", "failed", "interrupted", "cancelled")
_BATCH = 200
"""Trials per poll: a client that knows nothing of a large study receives it in parts."""


@dataclass(frozen=True)
class Cursor:
    """A position in the events of a study."""

    newest: int = 0
    """Id of the newest trial that is known."""
    epochs: Mapping[int, int] = field(default_factory=dict)
    """The newest epoch that is known of each unfinished trial, by id."""

    def __str__(self) -> str:
        known = ",".join(f"{trial}:{epoch}" for trial, epoch in sorted(self.epochs.items()))
        return f"{self.newest};{known}" if known else str(self.newest)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """The cursor of a text.

        Raises:
            ValueError: The text is not one of our cursors.
        """
        if len(text) > _MAX_CURSOR or not _CURSOR.fullmatch(text):
            raise ValueError(
                f"the id of the last event must be one that this service sent, but got {text[:80]!r}. Send none to "
                "receive all events."
            )
        newest, _, known = text.partition(";")
        pairs = (pair.partition(":") for pair in known.split(",") if pair)
        return cls(int(newest), {int(trial): int(epoch) for trial, _, epoch in pairs})


@dataclass(frozen=True)
class LiveEvent:
    """One event: `study`, `stage`, `trial`, `report` or `end`."""

    kind: str
    cursor: Cursor
    data: dict[str, Any]


class StudyFollower:
    """Finds what is new in a study.

    Args:
        home: The studies of the service.
        name: Name of the study.
        cursor: What the client knows already.
    """

    def __init__(self, home: VisibleStudies, name: str, cursor: Cursor) -> None:
        self._home, self._name, self._cursor = home, name, cursor
        self._told: dict[str, dict[str, Any]] = {}
        self.has_ended = False
        """Whether the study has ended and everything was told."""

    def poll(self) -> list[LiveEvent]:
        """The events since the last call.

        Raises:
            orchestrator.study.access.UnknownStudyError: The study does not exist, or was deleted.
            orchestrator.api.errors.RequestError: The caller's token is no longer valid.
        """
        self._home.check_token()
        # States are read before trials, and trials before reports, so that an end is told after all that precedes it.
        try:
            study = self._home.study(self._name)
        except UnknownStudyError:
            return self._of_waiting_study()
        store = self._home.store
        stages = store.stages(study.id)
        newest, known = self._cursor.newest, list(self._cursor.epochs)
        rows = store.pages().open_trials(study.id, after=newest, known=known, limit=_BATCH + len(known))
        events = [event for row in rows for event in self._of_trial(row)]
        for stage in stages:
            told = {"stage": stage.name, "kind": stage.kind, "state": stage.state, "reason": stage.reason}
            events += self._if_new(f"stage {stage.id}", "stage", told)
        if events or self._told.get("state") != {"state": study.state}:
            self._told["state"] = {"state": study.state}
            standing = study_standing(store, study, stages).model_dump(mode="json")
            events += self._if_new("study", "study", {"state": study.state, "reason": study.reason, **standing})
        is_all = sum(row["id"] > newest for row in rows) < _BATCH
        self.has_ended = is_all and study.state in _ENDED and not self._has_driver()
        if self.has_ended:
            events.append(LiveEvent("end", self._cursor, {"state": study.state}))
        return events

    def _has_driver(self) -> bool:
        """Whether the driver of a study still ends, after which other things can be done with the study."""
        submission = self._home.submission(self._name)
        return submission is not None and submission.is_active

    def _of_waiting_study(self) -> list[LiveEvent]:
        """The events of a study that was submitted and has not begun."""
        summary = self._home.summary(self._name)
        state = {"state": summary["state"], "reason": summary["reason"]}
        events = list(self._if_new("study", "study", state))
        self.has_ended = summary["state"] in _ENDED  # otherwise it waits, or has begun since the last look
        if self.has_ended:
            events.append(LiveEvent("end", self._cursor, {"state": summary["state"]}))
        return events

    def _of_trial(self, row: Mapping[str, Any]) -> Iterator[LiveEvent]:
        where = {"stage": row["stage"], "trial": row["number"]}
        known = self._cursor.epochs.get(row["id"], 0)
        epochs = {**self._cursor.epochs, row["id"]: known}
        newest = max(self._cursor.newest, row["id"])
        self._cursor = Cursor(newest, epochs)
        for report in self._home.store.pages().reports_after(row["id"], known):
            epochs = {**epochs, row["id"]: report.epoch}
            self._cursor = Cursor(newest, epochs)
            yield LiveEvent("report", self._cursor, {**where, **report.model_dump(mode="json")})
        if row["state"] in FINISHED:
            del epochs[row["id"]]
            self._cursor = Cursor(newest, epochs)
        state = {**where, "state": row["state"], "reason": row["reason"]}
        yield from self._if_new(f"trial {row['id']}", "trial", state)
        if row["state"] in FINISHED:
            self._told.pop(f"trial {row['id']}", None)

    def _if_new(self, key: str, kind: str, data: dict[str, Any]) -> Iterator[LiveEvent]:
        if self._told.get(key) != data:
            self._told[key] = data
            yield LiveEvent(kind, self._cursor, data)
