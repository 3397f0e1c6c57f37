"""The studies of the service, as far as a caller may see them."""

import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.api.auth import Caller
from orchestrator.api.errors import RequestError
from orchestrator.reports.summary import (
    stage_name,
    study_lines,
    study_summary,
    summary_before_begin,
)
from orchestrator.service.access_tokens import is_valid_token
from orchestrator.settings import Settings
from orchestrator.store.records import StageRecord, StudyRecord
from orchestrator.store.repository import Store
from orchestrator.store.service_records import ACTIVE, SubmissionRecord
from orchestrator.store.study_names import SEPARATOR, NameTakenError, full_name, nearest_study, owner_of
from orchestrator.study.access import UnknownStudyError
from orchestrator.study.states import state_before_begin, with_actual_state
from plugins.metrics.deciding import ACCURACY

_WAIT_S = 10.0
_PER_QUERY = 100
_MAX_NAMES = 2000
_SUBMITTED = ("interrupted", "failed", "cancelled")
"""States of a study that may be those of its submission alone."""
_NEWEST = 10**17
"""An id above all others."""
_POSITION = re.compile(r"w?[0-9]{1,18}")
"""Ids of submissions, with a `w`, and of studies."""


class Home:
    """The database of one installation. It is opened when it exists, with one connection pool that stays open.

    Args:
        settings: Settings of the installation.
        wait_s: How long a request waits for a database that does not answer.
    """

    def __init__(self, settings: Settings, *, wait_s: float = _WAIT_S) -> None:
        self.settings, self._wait_s = settings, wait_s
        self._store: Store | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> Store | None:
        """The store; `None` if there is no database yet."""
        with self._lock:
            if self._store is None:
                self._store = Store.find(
                    self.settings.database_url, artifact_root=self.settings.artifact_root, wait_s=self._wait_s
                )
            return self._store

    def open(self) -> Store:
        """The store; the database is created if necessary."""
        with self._lock:
            if self._store is None:
                self.settings.home.mkdir(parents=True, exist_ok=True)
                self._store = Store.open(
                    self.settings.database_url,
                    artifact_root=self.settings.artifact_root,
                    tracking=self.settings.tracking,
                    wait_s=self._wait_s,
                )
            return self._store

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None


class VisibleStudies:
    """Reads the studies that a caller may see. Others do not exist for this caller.

    Args:
        home: The database.
        caller: Who asks.
    """

    def __init__(self, home: Home, caller: Caller) -> None:
        self._home, self.caller = home, caller
        self.settings = home.settings

    @property
    def store(self) -> Store:
        """The store, after a study was found in it."""
        assert self._home.store is not None, "a study was found in it"
        return self._home.store

    @property
    def has_store(self) -> bool:
        """Whether there is a database."""
        return self._home.store is not None

    def newest(self) -> Iterator[StudyRecord]:
        """The studies that have begun, newest first, with the states of their rows."""
        return self._rows(None, owner=None, text=None, before=None)

    def study(self, name: str) -> StudyRecord:
        """The record of a study, with its actual state.

        Args:
            name: The name in the database, or in the caller's own files.

        Raises:
            UnknownStudyError: There is no study of that name.
        """
        for candidate in self._names(name):
            study = self._home.store.find_study(candidate) if self._home.store else None
            if study is not None and self.may_see(study.name):
                return self._with_states([study])[0]
        raise self._unknown(name)

    def submission(self, name: str) -> SubmissionRecord | None:
        """The newest submission of a study; `None` if it was never submitted."""
        for candidate in self._names(name):
            found = self._home.store.queue().find_latest(candidate) if self._home.store else None
            if found is not None and self.may_see(found.name):
                return found
        return None

    def may_see(self, name: str) -> bool:
        """Whether the caller may see the study of a full name."""
        if self.caller.may_see(owner_of(name)):
            return True
        submission = self.store.queue().find_latest(name)
        return submission is not None and submission.shared

    def check_token(self) -> None:
        """Check again that the caller's token is valid, while a long answer is sent.

        Raises:
            RequestError: It was revoked, or has expired.
        """
        token = self.caller.token
        if token is not None and not is_valid_token(self.store, token):
            raise RequestError(401, "not-authenticated", "the access token must be valid, but no longer is.")

    def check_name(self, name: str) -> None:
        """Check that a study exists or waits for its turn.

        Raises:
            UnknownStudyError: There is no study of that name.
        """
        if self.submission(name) is None:
            self.study(name)

    def summary(self, name: str) -> dict[str, Any]:
        """The summary of a study, as printed by `vitsearch status --format json`; also of one that has not begun.

        Raises:
            UnknownStudyError: There is no study of that name.
        """
        try:
            study = self.study(name)
        except UnknownStudyError:
            submission = self.submission(name)
            if submission is None:
                raise
            spec, _ = self.store.queue().spec_of(submission.uid)
            return summary_before_begin(submission, spec, *state_before_begin(self.store, submission))
        return study_summary(self.store, study)

    def lines(
        self, *, state: str | None, owner: str | None, text: str | None, after: str | None, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of studies, newest first, and the position of the next page if there is one.

        Studies that were submitted and have not begun come first.

        Args:
            state: Only studies in this state.
            owner: Only studies of this owner.
            text: Only studies whose names contain this text.
            after: Position of the page; `None` for the first one.
            limit: Largest number of studies.

        Raises:
            ValueError: `after` is not the position of a page, or a text has a null byte.
        """
        for what, given in (("owner", owner), ("text", text)):
            if given is not None and "\0" in given:
                raise ValueError(f"{what}: must not contain a null byte. Remove it.")
        begun, before = _position_of(after)
        lines: list[dict[str, Any]] = []
        if not begun:
            others = self._not_begun(state=state, owner=owner, text=text, before=before)
            sent = list(itertools.islice(others, limit + 1))
            lines = [self._line_of(one) for one in sent[:limit]]
            if len(sent) > limit:
                return lines, f"w{sent[limit - 1].id}"
        studies = self._matching(state=state, owner=owner, text=text, before=before if begun else None)
        found = list(itertools.islice(studies, limit - len(lines) + 1))
        shown = found[: limit - len(lines)]
        more = str(shown[-1].id if shown else _NEWEST) if len(found) > len(shown) else None
        return [*lines, *(study_lines(self.store, shown) if shown else ())], more

    @property
    def _seen_by(self) -> str | None:
        """The owner whose studies, besides shared ones, are all that the caller sees; `None` for an admin."""
        return None if self.caller.role == "admin" else self.caller.owner

    def stages(self, study: StudyRecord) -> dict[int, StageRecord]:
        """The stages of a study by id."""
        return {stage.id: stage for stage in self.store.stages(study.id)}

    def _names(self, name: str) -> list[str]:
        if "\0" in name:  # PostgreSQL takes no such text
            return []
        try:
            own = full_name(name, self.caller.owner)
        except NameTakenError:
            own = name
        return list(dict.fromkeys([own, name]))

    def _unknown(self, name: str) -> UnknownStudyError:
        store = self._home.store
        visible = store.pages().study_names(seen_by=self._seen_by, limit=_MAX_NAMES) if store else []
        meant = {one.partition(SEPARATOR)[2]: one for one in visible if SEPARATOR in one}
        meant |= {own: own for own, one in meant.items() if owner_of(one) == self.caller.owner}
        meant |= {one: one for one in visible}
        nearest = nearest_study(name, list(meant))
        home = self.settings.home if self.caller.token is None else None  # others need not know where it is
        return UnknownStudyError(name, home, meant[nearest] if nearest else None)

    def _with_states(self, studies: Sequence[StudyRecord]) -> list[StudyRecord]:
        """The records with their actual states."""
        submissions = self.store.queue().find_latest_of([study.name for study in studies])
        return [with_actual_state(study, self.settings, self.store, submissions.get(study.name)) for study in studies]

    def _matching(
        self, *, state: str | None, owner: str | None, text: str | None, before: int | None
    ) -> Iterator[StudyRecord]:
        rows = self._rows(state, owner=owner, text=text, before=before)
        while page := list(itertools.islice(rows, _PER_QUERY)):
            yield from (study for study in self._with_states(page) if state in (None, study.state))

    def _rows(
        self, state: str | None, *, owner: str | None, text: str | None, before: int | None
    ) -> Iterator[StudyRecord]:
        """The rows of studies, newest first; with `state`, among others all of those in this state."""
        # A row differs from the actual state if a driver was killed or could not begin, and if the study waits again.
        states = {"interrupted", "running"} if state == "interrupted" else {state} if state else None
        store = self._home.store
        while store is not None:
            rows = store.pages().studies(
                states=states,
                or_submitted=ACTIVE if state == "waiting" else {state} if state in _SUBMITTED else (),
                owner=owner,
                text=text,
                seen_by=self._seen_by,
                before=before,
                limit=_PER_QUERY,
            )
            yield from rows
            if len(rows) < _PER_QUERY:
                return
            before = rows[-1].id

    def _not_begun(
        self, *, state: str | None, owner: str | None, text: str | None, before: int | None
    ) -> Iterator[SubmissionRecord]:
        """Submissions whose study has not begun: they wait, were cancelled, or failed before it."""
        store = self._home.store
        while store is not None:
            page = store.queue().page(
                owner=owner, seen_by=self._seen_by, text=text, without_study=True, before=before, limit=_PER_QUERY
            )
            yield from (one for one in page if state in (None, state_before_begin(self.store, one)[0]))
            if len(page) < _PER_QUERY:
                return
            before = page[-1].id

    def _line_of(self, submission: SubmissionRecord) -> dict[str, Any]:
        spec, _ = self.store.queue().spec_of(submission.uid)
        state, reason = state_before_begin(self.store, submission)
        return {
            "study": submission.name,
            "state": state,
            "reason": reason,
            "owner": submission.owner,
            "stages": len(spec["stages"]),
            "stages_done": 0,
            "progress": 0.0,
            "stage": stage_name(spec["stages"][0]),
            "metric": ACCURACY.key,
            "best": None,
            "best_text": None,
            "test_accuracy": None,
            "created_at": submission.created_at,
            "updated_at": submission.ended_at or submission.created_at,
        }


def _position_of(after: str | None) -> tuple[bool, int | None]:
    """Whether a page begins with studies that have begun, and the id of the last row of the page before."""
    if after is None:
        return False, None
    if not _POSITION.fullmatch(after):
        raise ValueError(f"after: must be `next` of the previous page, but got {after[:80]!r}.")
    return not after.startswith("w"), int(after.removeprefix("w"))
