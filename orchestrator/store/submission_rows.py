"""The queue of submitted studies. Every method is one transaction. `submission_leases` explains leases."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from orchestrator.store.audit_rows import write_event
from orchestrator.store.database_time import read_time
from orchestrator.store.prepared_statements import Prepared
from orchestrator.store.reading import reading
from orchestrator.store.retrying import is_repeated, retry_on_outage
from orchestrator.store.service_records import (
    ACTIVE,
    Actor,
    NewSubmission,
    Placement,
    PoolFull,
    SubmissionRecord,
    WebhookTarget,
)
from orchestrator.store.submission_access import (
    IS_ACTIVE,
    SUBMISSION_COLUMNS,
    change_submission,
    known_submission,
    newest_submission,
    submission_of_row,
)
from orchestrator.store.submission_inserts import INSERT_FIRST, added_submission, insert_new, insert_values
from orchestrator.store.submission_leases import (
    LEASE_S,
    charge_owner,
    end_submission,
    give_up_dead,
    give_up_submission,
    held_submission,
    is_driven,
    let_all_wait,
    newest_execution,
    waiting_in_turn,
)
from orchestrator.store.tables import studies, submissions
from orchestrator.store.webhook_rows import announce_end

Place = Callable[[SubmissionRecord, Sequence[SubmissionRecord]], Placement | PoolFull | str]
"""Maps a waiting submission and the running ones of the pool to the devices for it, or to the reason why it waits."""

_QUEUE_LOCK = 0x76697471  # "vitq" in ASCII
_OWNER_LOCK = 0x76697473  # "vits": with two keys, apart from the locks with one
_MAX_CONCURRENT = 500
"""More than the transactions of one owner that all replicas together have open at a time."""
_one_of_this_process = threading.Lock()
"""Waiting for it is faster than repeated attempts to lock SQLite."""
_UNLIMITED = 2**31 - 1


class StudyActiveError(RuntimeError):
    """A study of that name is waiting or running already.

    Attributes:
        name: The study.
        uid: The active submission.
    """

    def __init__(self, name: str, uid: str, state: str, *, is_cancelled: bool = False) -> None:
        self.name, self.uid = name, uid
        super().__init__(
            f"study {name!r} must have stopped before it is resumed, but it is cancelled and still in its last step. "
            f"Resume it when this has ended: vitsearch watch {name}"
            if is_cancelled
            else f"study {name!r} must not be submitted twice at a time, but it is {state} already. Follow it with: "
            f"vitsearch watch {name}"
        )


class TooManyStudiesError(RuntimeError):
    """An owner has as many active studies as allowed.

    Attributes:
        owner: The owner.
        max_active: Studies of an owner that may wait or run at a time.
    """

    def __init__(self, owner: str, max_active: int) -> None:
        self.owner, self.max_active = owner, max_active
        super().__init__(
            f"an owner may have {max_active} studies that wait or run, but {owner!r} has as many. Wait until some have "
            "ended, or cancel them."
        )


class IdempotencyError(ValueError):
    """An idempotency key was used before with another request."""


@retry_on_outage
class SubmissionQueue:
    """Reads and writes submissions.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, new: NewSubmission, *, by: Actor | None = None, max_active: int | None = None) -> SubmissionRecord:
        """Add a submission that waits. A request repeated with its idempotency key returns the submission it made.

        A study that others may see stays visible to them, and keeps its webhook if it gets no other one.

        Args:
            new: The submission.
            by: Who is noted in the audit log, if it is new.
            max_active: Submissions of the owner that may wait or run at a time, with this one.

        Raises:
            IdempotencyError: The owner used the key for another request.
            StudyActiveError: The study is waiting or running.
            TooManyStudiesError: `max_active` others wait or run.
        """
        with self._locked() as connection:
            while (added := insert_new(connection, new)) is None:
                found = newest_submission(connection, _repeats(new))
                if found is not None:
                    _check_repeated(found, new)
                    return found
                active = newest_submission(connection, submissions.c.name == new.name, submissions.c.state.in_(ACTIVE))
                if active is not None:  # otherwise it has ended just now
                    raise StudyActiveError(new.name, active.uid, active.state)
            _limit_active(connection, new.owner, max_active)
            if by is not None:
                write_event(connection, by, new.name, details={"submission": new.uid})
            return added

    def add_first(
        self, new: NewSubmission, *, by: Actor | None = None, max_active: int | None = None
    ) -> SubmissionRecord | None:
        """Add a submission of a study that does not exist yet, as by `add`, in one round trip to PostgreSQL.

        Args:
            new: The submission.
            by: Who is noted in the audit log.
            max_active: As in `add`.

        Returns:
            The submission with the number of those ahead of it. `None` if nothing was added, and `add` has to decide:
            there is a study of that name, the request may be a repeated one, the study may be active, the owner is near
            the limit, or the database is not PostgreSQL.
        """
        if self._engine.dialect.name != "postgresql":
            return None
        values = {
            **insert_values(new),
            "room": _UNLIMITED if max_active is None else max_active - _MAX_CONCURRENT,
            "actor": by and by.owner,
            "action": by and by.action,
            "token": by and by.token,
            "details": {"submission": new.uid},
        }
        with reading(self._engine) as connection:
            row = INSERT_FIRST.first(connection, **values)
        return None if row is None else added_submission(new, row).model_copy(update={"num_ahead": row[4]})

    def find(self, uid: str) -> SubmissionRecord | None:
        """The submission with that identifier."""
        with reading(self._engine) as connection:
            return newest_submission(connection, submissions.c.uid == uid)

    def find_latest(self, name: str) -> SubmissionRecord | None:
        """The newest submission of a study."""
        with reading(self._engine) as connection:
            return newest_submission(connection, submissions.c.name == name)

    def find_latest_of(self, names: Collection[str]) -> dict[str, SubmissionRecord]:
        """The newest submissions of studies, by name; those that were never submitted are left out."""
        newest = select(func.max(submissions.c.id)).where(submissions.c.name.in_(names)).group_by(submissions.c.name)
        with reading(self._engine) as connection:
            rows = connection.execute(select(*SUBMISSION_COLUMNS).where(submissions.c.id.in_(newest))).mappings()
            return {row["name"]: submission_of_row(row) for row in rows}

    def has_key(self, owner: str, idempotency_key: str) -> bool:
        """Whether an owner has used an idempotency key."""
        with reading(self._engine) as connection:
            return newest_submission(connection, _has_key(owner, idempotency_key)) is not None

    def page(
        self,
        *,
        owner: str | None = None,
        states: Collection[str] = (),
        seen_by: str | None = None,
        text: str | None = None,
        without_study: bool = False,
        before: int | None = None,
        limit: int = 100,
    ) -> list[SubmissionRecord]:
        """Submissions, newest first.

        Args:
            owner: Only those of this owner.
            states: Only those in one of these states; all if empty.
            seen_by: Only those of this owner, and shared ones.
            text: Only those of studies whose names contain this text.
            without_study: Only the newest ones of studies that have not begun.
            before: Only those with a lower `id`, for the next page.
            limit: Maximum number.
        """
        conditions: list[Any] = []
        if owner is not None:
            conditions.append(submissions.c.owner == owner)
        if seen_by is not None:
            conditions.append(or_(submissions.c.owner == seen_by, submissions.c.shared))
        if text is not None:
            conditions.append(submissions.c.name.contains(text, autoescape=True))
        if states:
            conditions.append(submissions.c.state.in_(states))
        if without_study:
            newer = submissions.alias()
            conditions.append(~exists().where(studies.c.name == submissions.c.name))
            conditions.append(~exists().where(newer.c.name == submissions.c.name, newer.c.id > submissions.c.id))
        if before is not None:
            conditions.append(submissions.c.id < before)
        found = select(*SUBMISSION_COLUMNS).where(*conditions).order_by(submissions.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [submission_of_row(row) for row in connection.execute(found).mappings()]

    def newest(self) -> dict[str, SubmissionRecord]:
        """The newest submissions of all studies, by name, the newest first."""
        ids = select(func.max(submissions.c.id)).group_by(submissions.c.name)
        found = select(*SUBMISSION_COLUMNS).where(submissions.c.id.in_(ids)).order_by(submissions.c.id.desc())
        with reading(self._engine) as connection:
            return {row["name"]: submission_of_row(row) for row in connection.execute(found).mappings()}

    def spec_of(self, uid: str) -> tuple[dict[str, Any], str]:
        """The checked study file of a submission, and its text.

        Raises:
            KeyError: There is no such submission.
        """
        with reading(self._engine) as connection:
            found = select(submissions.c.spec, submissions.c.spec_text).where(submissions.c.uid == uid)
            row = connection.execute(found).one_or_none()
        if row is None:
            raise KeyError(uid)
        return dict(row.spec), row.spec_text

    def webhook_of(self, uid: str) -> WebhookTarget | None:
        """Where the end of a submission is announced."""
        with reading(self._engine) as connection:
            found = connection.execute(select(submissions.c.webhook).where(submissions.c.uid == uid)).scalar()
        return None if found is None else WebhookTarget.model_validate(found)

    def position(self, submission: SubmissionRecord) -> int:
        """Number of waiting submissions of the same owner that come first."""
        mine = {"of_owner": submission.owner, "of_priority": submission.priority, "of_id": submission.id}
        with reading(self._engine) as connection:
            return int(_COUNT_AHEAD.first(connection, **mine)[0])

    def count(self, state: str) -> int:
        """Number of submissions in a state."""
        with reading(self._engine) as connection:
            return connection.execute(select(func.count()).where(submissions.c.state == state)).scalar_one()

    def request_cancel(self, uid: str) -> SubmissionRecord:
        """Cancel a waiting submission, or ask the driver of a running one to stop. Others stay as they are.

        Raises:
            KeyError: There is no such submission.
        """
        with self._locked() as connection:
            found = known_submission(connection, uid)
            if found.state == "waiting":
                now = read_time(connection)
                change_submission(connection, found, state="cancelled", reason=None, ended_at=now, devices=None)
                announce_end(connection, known_submission(connection, uid), now)
            elif found.state == "running":
                change_submission(connection, found, cancel_requested=True)
            return known_submission(connection, uid)

    def let_wait(self, uid: str, *, retry_failed: bool = False, max_active: int | None = None) -> SubmissionRecord:
        """Let a submission that was interrupted, cancelled or has failed wait again. Others stay as they are.

        With `retry_failed`, a complete one waits too.

        Raises:
            KeyError: There is no such submission.
            StudyActiveError: Another submission of the study is active, or this one was cancelled and still ends.
            TooManyStudiesError: `max_active` others of the owner wait or run.
        """
        try:
            return self._let_wait(uid, retry_failed=retry_failed, max_active=max_active)
        except IntegrityError:  # another request let the same study wait at the same time
            return self._let_wait(uid, retry_failed=retry_failed, max_active=max_active)

    def _let_wait(self, uid: str, *, retry_failed: bool, max_active: int | None) -> SubmissionRecord:
        with self._locked() as connection:
            found = known_submission(connection, uid)
            if found.is_active and found.cancel_requested:
                raise StudyActiveError(found.name, uid, found.state, is_cancelled=True)
            if found.is_active or (found.state == "complete" and not retry_failed):
                return found
            active = newest_submission(connection, submissions.c.name == found.name, submissions.c.state.in_(ACTIVE))
            if active is not None:
                raise StudyActiveError(found.name, active.uid, active.state)
            again = {"retry_failed": True} if retry_failed else {}
            change_submission(
                connection,
                found,
                state="waiting",
                reason=None,
                cancel_requested=False,
                num_deaths=0,
                ended_at=None,
                **again,
            )
            _limit_active(connection, found.owner, max_active)
            return known_submission(connection, uid)

    def share(self, name: str, *, shared: bool) -> None:
        """Let other owners see a study, or no longer."""
        with self._engine.begin() as connection:
            connection.execute(update(submissions).where(submissions.c.name == name).values(shared=shared))

    def forget(self, name: str) -> list[str]:
        """Delete the submissions of a study, but none if a driver has one of them; returns their identifiers."""
        with self._locked() as connection:
            return [] if _has_driver(connection, name) else forget_submissions(connection, name)

    def has_driver(self, name: str) -> bool:
        """Whether a driver runs a submission of a study, or is about to start."""
        with reading(self._engine) as connection:
            return _has_driver(connection, name)

    # --- claims ---

    def claim(self, replica: str, pool: str, place: Place, *, lease_s: float = LEASE_S) -> SubmissionRecord | None:
        """Claim the next submission that can run in a pool.

        Owners take turns by the device time that they have used; an owner's submissions come in the order of their
        priority and age. While one waits for GPUs, later ones that need GPUs wait too, so that it is not starved.

        Args:
            replica: Who claims.
            pool: The machine or cluster whose devices are used. Only one claim at a time counts them.
            place: Chooses the devices.
            lease_s: Time until the first heartbeat.

        Returns:
            The submission, now running; `None` if none can run now. The reasons are in the rows.
        """
        with self._locked() as connection:
            if connection.dialect.name == "postgresql":  # one claim at a time counts the devices
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_QUEUE_LOCK})"))
            now = read_time(connection)
            if is_repeated():
                begun = (
                    submissions.c.replica == replica,
                    submissions.c.state == "running",
                    submissions.c.pid.is_(None),
                )
                claimed = newest_submission(connection, *begun)
                if claimed is not None:
                    return claimed
            give_up_dead(connection, now, lease_s)
            in_pool = (submissions.c.state == "running", submissions.c.pool == pool)
            found = select(*SUBMISSION_COLUMNS).where(*in_pool)
            running = [submission_of_row(row) for row in connection.execute(found).mappings()]
            for waiting in waiting_in_turn(connection, now):
                placed = place(waiting, running)
                if isinstance(placed, PoolFull):
                    let_all_wait(connection, placed)
                    return None
                if isinstance(placed, str):
                    if placed != waiting.reason:
                        change_submission(connection, waiting, reason=placed)
                    continue
                change_submission(
                    connection,
                    waiting,
                    state="running",
                    reason=None,
                    pool=pool,
                    devices=placed.devices,
                    replica=replica,
                    lease=waiting.lease + 1,
                    lease_until=now + lease_s,
                    heartbeat_at=now,
                    host=None,
                    pid=None,
                    started_at=waiting.started_at or now,
                    progress=newest_execution(connection, waiting.name),
                )
                return known_submission(connection, waiting.uid)
        return None

    def begin(self, uid: str, lease: int, *, host: str, pid: int, lease_s: float = LEASE_S) -> SubmissionRecord:
        """Note the process that runs a claimed submission.

        Raises:
            LeaseLostError: The lease has been lost.
        """
        with self._locked() as connection:
            found = held_submission(connection, uid, lease)
            change_submission(connection, found, host=host, pid=pid, lease_until=read_time(connection) + lease_s)
            return known_submission(connection, uid)

    def heartbeat(self, uid: str, lease: int, *, lease_s: float = LEASE_S) -> bool:
        """Renew a lease, and charge the owner for the devices since the last heartbeat.

        Returns:
            Whether the submission is to be cancelled.

        Raises:
            LeaseLostError: The lease has been lost.
        """
        with self._locked() as connection:
            found = held_submission(connection, uid, lease)
            now = read_time(connection)
            spent_s = charge_owner(connection, found, now)
            change_submission(
                connection,
                found,
                lease_until=now + lease_s,
                heartbeat_at=now,
                device_time_s=found.device_time_s + spent_s,
            )
            return found.cancel_requested

    def end(self, uid: str, lease: int, state: str, reason: str | None = None) -> SubmissionRecord:
        """Write how a driver ended. `waiting` lets the study be resumed by another one.

        A cancelled submission that did not complete is `cancelled`.

        Raises:
            LeaseLostError: The lease has been lost.
        """
        with self._locked() as connection:
            if is_repeated():
                found = known_submission(connection, uid)
                if found.state != "running" and found.lease == lease:
                    return found
            found = held_submission(connection, uid, lease)
            end_submission(connection, found, read_time(connection), state, reason)
            return known_submission(connection, uid)

    def give_up(self, uid: str, lease: int, reason: str, *, at_last: str | None = None) -> SubmissionRecord | None:
        """Let a submission whose driver died wait for another driver; it fails after `MAX_DEATHS` without progress.

        Args:
            uid: The submission.
            lease: The number of its lease.
            reason: What happened to the driver.
            at_last: The reason with which it fails then, by default `reason`.

        Returns:
            The submission; `None` if the driver had written its end, or another one has the lease.
        """
        with self._locked() as connection:
            found = newest_submission(connection, submissions.c.uid == uid)
            if found is None or found.state != "running" or found.lease != lease:
                return None
            give_up_submission(connection, found, read_time(connection), reason, at_last=at_last)
            return known_submission(connection, uid)

    @contextmanager
    def _locked(self) -> Iterator[Connection]:
        """A transaction that reads and then writes. SQLite, which has no locks on rows, has one at a time."""
        is_sqlite = self._engine.dialect.name == "sqlite"
        with _one_of_this_process if is_sqlite else nullcontext(), self._engine.begin() as connection:
            if is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


def _limit_active(connection: Connection, owner: str, max_active: int | None) -> None:
    """Check that an owner has no more active submissions than allowed, those of this transaction included.

    Far below the limit, submissions do not wait for each other. Near it, only one transaction of the owner at a time
    passes on PostgreSQL, so that it sees what the others have added.
    """
    if max_active is None:
        return
    num_active = _COUNT_ACTIVE.first(connection, of_owner=owner)[0]
    if num_active > max_active - _MAX_CONCURRENT and connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_OWNER_LOCK, func.hashtext(owner))))
        num_active = _COUNT_ACTIVE.first(connection, of_owner=owner)[0]
    if num_active > max_active:
        raise TooManyStudiesError(owner, max_active)


def forget_submissions(connection: Connection, name: str) -> list[str]:
    """Delete the submissions of a study that no driver has; returns their identifiers."""
    gone = (submissions.c.name == name, ~is_driven(read_time(connection)))
    uids = list(connection.execute(select(submissions.c.uid).where(*gone)).scalars())
    connection.execute(delete(submissions).where(submissions.c.uid.in_(uids)))
    return uids


def _has_driver(connection: Connection, name: str) -> bool:
    return newest_submission(connection, submissions.c.name == name, is_driven(read_time(connection))) is not None


_AHEAD = or_(
    submissions.c.priority > bindparam("of_priority"),
    and_(submissions.c.priority == bindparam("of_priority"), submissions.c.id < bindparam("of_id")),
)
_COUNT_ACTIVE = Prepared(select(func.count()).where(submissions.c.owner == bindparam("of_owner"), IS_ACTIVE))
_COUNT_AHEAD = Prepared(
    select(func.count()).where(submissions.c.owner == bindparam("of_owner"), submissions.c.state == "waiting", _AHEAD)
)


def _check_repeated(found: SubmissionRecord, new: NewSubmission) -> None:
    if found.request_digest != new.request_digest:
        raise IdempotencyError(
            f"the idempotency key {new.idempotency_key!r} must repeat the same request, but it was used for study "
            f"{found.name!r} with another one. Use a new key."
        )


def _repeats(new: NewSubmission) -> ColumnElement[bool]:
    """The submission that a repeated request has made."""
    is_same = submissions.c.uid == new.uid  # the connection broke while it was committed
    return is_same if new.idempotency_key is None else or_(is_same, _has_key(new.owner, new.idempotency_key))


def _has_key(owner: str, idempotency_key: str) -> ColumnElement[bool]:
    return and_(submissions.c.owner == owner, submissions.c.idempotency_key == idempotency_key)
