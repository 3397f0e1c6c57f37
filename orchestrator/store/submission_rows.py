"""The queue of submitted studies. Every method is one transaction.

A running submission has a lease until `lease_until` by the clock of the database, which its driver renews. Each claim
gets the next number as `lease`; writes with an older number are refused, so that a driver which was believed dead
changes nothing.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import Insert

from orchestrator.store.audit_rows import event_of, write_event
from orchestrator.store.database_time import database_time, read_time
from orchestrator.store.owner_rows import charge, owners_in_turn
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
from orchestrator.store.tables import attempts, executions, reports, studies, submissions
from orchestrator.store.upserts import insert_into
from orchestrator.store.webhook_rows import announce_end

LEASE_S = 60.0
"""Time after its last heartbeat at which a driver is taken for dead."""
MAX_DEATHS = 5
"""A study whose drivers died this often without any progress fails."""
Place = Callable[[SubmissionRecord, Sequence[SubmissionRecord]], Placement | PoolFull | str]
"""Maps a waiting submission and the running ones of the pool to the devices for it, or to the reason why it waits."""

_QUEUE_LOCK = 0x76697471  # "vitq" in ASCII
_OWNER_LOCK = 0x76697473  # "vits": with two keys, apart from the locks with one
_MAX_CONCURRENT = 500
"""More than the transactions of one owner that all replicas together have open at a time."""
_one_of_this_process = threading.Lock()
"""Waiting for it is faster than repeated attempts to lock SQLite."""
_UNLIMITED = 2**31 - 1
_MAX_EXAMINED = 50
"""Waiting submissions of one owner that a claim looks at. Those that can never run do not hold up other owners."""
_PLAIN = [column for column in submissions.c if column.name not in ("spec", "spec_text", "webhook")]
_COLUMNS = [*_PLAIN, submissions.c.webhook.is_not(None).label("has_webhook")]


class LeaseLostError(RuntimeError):
    """A driver no longer has the lease of its submission: another one was started, or it was cancelled."""


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
            while (added := _insert_new(connection, new)) is None:
                found = _one(connection, _repeats(new))
                if found is not None:
                    _check_repeated(found, new)
                    return found
                active = _one(connection, submissions.c.name == new.name, submissions.c.state.in_(ACTIVE))
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
            **_insert_values(new),
            "room": _UNLIMITED if max_active is None else max_active - _MAX_CONCURRENT,
            "actor": by and by.owner,
            "action": by and by.action,
            "token": by and by.token,
            "details": {"submission": new.uid},
        }
        with reading(self._engine) as connection:
            row = _INSERT_FIRST.first(connection, **values)
        return None if row is None else _added(new, row).model_copy(update={"num_ahead": row[4]})

    def find(self, uid: str) -> SubmissionRecord | None:
        """The submission with that identifier."""
        with reading(self._engine) as connection:
            return _one(connection, submissions.c.uid == uid)

    def find_latest(self, name: str) -> SubmissionRecord | None:
        """The newest submission of a study."""
        with reading(self._engine) as connection:
            return _one(connection, submissions.c.name == name)

    def find_latest_of(self, names: Collection[str]) -> dict[str, SubmissionRecord]:
        """The newest submissions of studies, by name; those that were never submitted are left out."""
        newest = select(func.max(submissions.c.id)).where(submissions.c.name.in_(names)).group_by(submissions.c.name)
        with reading(self._engine) as connection:
            rows = connection.execute(select(*_COLUMNS).where(submissions.c.id.in_(newest))).mappings()
            return {row["name"]: _record(row) for row in rows}

    def has_key(self, owner: str, idempotency_key: str) -> bool:
        """Whether an owner has used an idempotency key."""
        with reading(self._engine) as connection:
            return _one(connection, _has_key(owner, idempotency_key)) is not None

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
        found = select(*_COLUMNS).where(*conditions).order_by(submissions.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_record(row) for row in connection.execute(found).mappings()]

    def newest(self) -> dict[str, SubmissionRecord]:
        """The newest submissions of all studies, by name, the newest first."""
        ids = select(func.max(submissions.c.id)).group_by(submissions.c.name)
        found = select(*_COLUMNS).where(submissions.c.id.in_(ids)).order_by(submissions.c.id.desc())
        with reading(self._engine) as connection:
            return {row["name"]: _record(row) for row in connection.execute(found).mappings()}

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
            found = _known(connection, uid)
            if found.state == "waiting":
                now = read_time(connection)
                _set(connection, found, state="cancelled", reason=None, ended_at=now, devices=None)
                announce_end(connection, _known(connection, uid), now)
            elif found.state == "running":
                _set(connection, found, cancel_requested=True)
            return _known(connection, uid)

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
            found = _known(connection, uid)
            if found.is_active and found.cancel_requested:
                raise StudyActiveError(found.name, uid, found.state, is_cancelled=True)
            if found.is_active or (found.state == "complete" and not retry_failed):
                return found
            active = _one(connection, submissions.c.name == found.name, submissions.c.state.in_(ACTIVE))
            if active is not None:
                raise StudyActiveError(found.name, active.uid, active.state)
            again = {"retry_failed": True} if retry_failed else {}
            _set(
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
            return _known(connection, uid)

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
                found = _one(connection, *begun)
                if found is not None:
                    return found
            _give_up_dead(connection, now, lease_s)
            in_pool = (submissions.c.state == "running", submissions.c.pool == pool)
            running = [_record(row) for row in connection.execute(select(*_COLUMNS).where(*in_pool)).mappings()]
            for waiting in _in_turn(connection, now):
                placed = place(waiting, running)
                if isinstance(placed, PoolFull):
                    _let_all_wait(connection, placed)
                    return None
                if isinstance(placed, str):
                    if placed != waiting.reason:
                        _set(connection, waiting, reason=placed)
                    continue
                _set(
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
                    progress=_newest_execution(connection, waiting.name),
                )
                return _known(connection, waiting.uid)
        return None

    def begin(self, uid: str, lease: int, *, host: str, pid: int, lease_s: float = LEASE_S) -> SubmissionRecord:
        """Note the process that runs a claimed submission.

        Raises:
            LeaseLostError: The lease has been lost.
        """
        with self._locked() as connection:
            found = _held(connection, uid, lease)
            _set(connection, found, host=host, pid=pid, lease_until=read_time(connection) + lease_s)
            return _known(connection, uid)

    def heartbeat(self, uid: str, lease: int, *, lease_s: float = LEASE_S) -> bool:
        """Renew a lease, and charge the owner for the devices since the last heartbeat.

        Returns:
            Whether the submission is to be cancelled.

        Raises:
            LeaseLostError: The lease has been lost.
        """
        with self._locked() as connection:
            found = _held(connection, uid, lease)
            now = read_time(connection)
            spent_s = _charge(connection, found, now)
            _set(
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
                found = _known(connection, uid)
                if found.state != "running" and found.lease == lease:
                    return found
            found = _held(connection, uid, lease)
            _end(connection, found, read_time(connection), state, reason)
            return _known(connection, uid)

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
            found = _one(connection, submissions.c.uid == uid)
            if found is None or found.state != "running" or found.lease != lease:
                return None
            _give_up(connection, found, read_time(connection), reason, at_last=at_last)
            return _known(connection, uid)

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
    gone = (submissions.c.name == name, ~_is_driven(read_time(connection)))
    uids = list(connection.execute(select(submissions.c.uid).where(*gone)).scalars())
    connection.execute(delete(submissions).where(submissions.c.uid.in_(uids)))
    return uids


def _has_driver(connection: Connection, name: str) -> bool:
    return _one(connection, submissions.c.name == name, _is_driven(read_time(connection))) is not None


def _is_driven(now: float) -> ColumnElement[bool]:
    """Running, and its driver has not stopped answering."""
    return and_(submissions.c.state == "running", submissions.c.lease_until >= now)


def _in_turn(connection: Connection, now: float) -> Iterator[SubmissionRecord]:
    """Waiting submissions in the order in which they should run. Rows that another transaction holds are skipped."""
    for owner in owners_in_turn(connection, now):
        mine = (submissions.c.state == "waiting", submissions.c.owner == owner)
        order = (submissions.c.priority.desc(), submissions.c.id)
        found = select(*_COLUMNS).where(*mine).order_by(*order).limit(_MAX_EXAMINED).with_for_update(skip_locked=True)
        yield from map(_record, connection.execute(found).mappings().all())


def _let_all_wait(connection: Connection, full: PoolFull) -> None:
    """Write why all waiting submissions wait, unless another reason than an earlier limit of the pool is known.

    Otherwise two full pools would keep replacing each other's reasons. Rows that another transaction holds are skipped.
    """
    earlier = and_(
        submissions.c.reason.startswith(full.beginning, autoescape=True), submissions.c.reason != full.reason
    )
    others = select(submissions.c.id).where(
        submissions.c.state == "waiting", or_(submissions.c.reason.is_(None), earlier)
    )
    of_others = submissions.c.id.in_(others.with_for_update(skip_locked=True))
    connection.execute(update(submissions).where(of_others).values(reason=full.reason))


def _give_up_dead(connection: Connection, now: float, lease_s: float) -> None:
    """Let submissions wait again whose drivers have not renewed their lease.

    A lease that ends far in the future was written before the clock of an SQLite machine was set back.
    """
    lapsed = or_(submissions.c.lease_until < now, submissions.c.lease_until > now + 2 * max(lease_s, LEASE_S))
    dead = select(*_COLUMNS).where(submissions.c.state == "running", lapsed).with_for_update(skip_locked=True)
    for row in connection.execute(dead).mappings().all():
        _give_up(connection, _record(row), now, "its driver stopped answering")


def _give_up(
    connection: Connection, found: SubmissionRecord, now: float, reason: str, *, at_last: str | None = None
) -> None:
    num_deaths = 1 if _has_progressed(connection, found.name, since=found.progress) else found.num_deaths + 1
    if found.cancel_requested:
        _end(connection, found, now, "cancelled", None)
    elif num_deaths >= MAX_DEATHS:
        ended = "died" if at_last is None else "ended so"
        why = f"{(at_last or reason).rstrip('.')}; {num_deaths} drivers {ended} one after another without any progress"
        _end(connection, found, now, "failed", f"{why}. See: vitsearch logs {found.name}")
    else:
        _end(connection, found, now, "waiting", f"{reason}; it will be resumed")
    _set(connection, found, num_deaths=num_deaths)


def _end(connection: Connection, found: SubmissionRecord, now: float, state: str, reason: str | None) -> None:
    if found.cancel_requested and state not in ("complete", "failed"):
        state, reason = "cancelled", None
    spent_s = _charge(connection, found, now)
    over = {} if state == "waiting" else {"ended_at": now, "cancel_requested": False}
    _set(
        connection,
        found,
        state=state,
        reason=reason,
        devices=None,
        lease_until=None,
        device_time_s=found.device_time_s + spent_s,
        **over,
    )
    if over:
        announce_end(connection, _known(connection, found.uid), now)


def _charge(connection: Connection, found: SubmissionRecord, now: float) -> float:
    """Charge the owner for the time since the last heartbeat; returns it in device seconds.

    A driver that was silent for longer than its lease is charged for the lease only.
    """
    silent_s = min(max(now - (found.heartbeat_at or now), 0.0), LEASE_S)
    spent_s = silent_s * max(found.num_gpus, 1.0)
    charge(connection, found.owner, spent_s, now)
    return spent_s


def _newest_execution(connection: Connection, name: str) -> int:
    """The id of the newest execution of a study, which those of the next driver exceed."""
    newest = select(func.max(executions.c.id)).join(studies, studies.c.id == executions.c.study_id)
    return connection.execute(newest.where(studies.c.name == name)).scalar() or 0


def _has_progressed(connection: Connection, name: str, *, since: int) -> bool:
    """Whether executions of a study after the one with the id `since` ended an attempt or reported an epoch.

    In a submission that an earlier version claimed, `since` may be a number of reports. If it exceeds all ids, the
    driver is taken to have progressed.

    Reports are compared with the begin of their attempts by the same clock, which is the study's.
    """
    if since > _newest_execution(connection, name):
        return True
    ended = attempts.c.state.in_(("complete", "stopped", "failed"))
    reported = exists().where(reports.c.trial_id == attempts.c.trial_id, reports.c.reported_at > attempts.c.started_at)
    of_study = (studies.c.name == name, executions.c.id > since)
    found = (
        select(attempts.c.id)
        .join(executions, executions.c.id == attempts.c.execution_id)
        .join(studies, studies.c.id == executions.c.study_id)
        .where(*of_study, or_(ended, reported))
        .limit(1)
    )
    return connection.execute(found).first() is not None


_AHEAD = or_(
    submissions.c.priority > bindparam("of_priority"),
    and_(submissions.c.priority == bindparam("of_priority"), submissions.c.id < bindparam("of_id")),
)
_IS_ACTIVE = or_(*(submissions.c.state == state for state in sorted(ACTIVE)))
_COUNT_ACTIVE = Prepared(select(func.count()).where(submissions.c.owner == bindparam("of_owner"), _IS_ACTIVE))
_COUNT_AHEAD = Prepared(
    select(func.count()).where(submissions.c.owner == bindparam("of_owner"), submissions.c.state == "waiting", _AHEAD)
)


def _held(connection: Connection, uid: str, lease: int) -> SubmissionRecord:
    found = _one(connection, submissions.c.uid == uid, for_update=True)
    if found is None or found.state != "running" or found.lease != lease:
        state = "deleted" if found is None else found.state
        raise LeaseLostError(
            f"submission {uid} must be running with lease {lease} to be continued by this process, but it is {state}"
            + (f" with lease {found.lease}" if found is not None and found.lease != lease else "")
            + ". Another process has taken it over."
        )
    return found


def _insert_new(connection: Connection, new: NewSubmission) -> SubmissionRecord | None:
    """Insert a submission, unless it repeats another one or its study is active."""
    values = _insert_values(new)
    if connection.dialect.name == "sqlite":
        row = _INSERTED.first(connection, of_uid=new.uid) if _INSERT.count(connection, **values) else None
    else:
        row = _INSERT.first(connection, **values)
    return None if row is None else _added(new, row)


def _insert_values(new: NewSubmission) -> dict[str, Any]:
    webhook = None if new.webhook is None else new.webhook.model_dump()
    return {**new._asdict(), "wants": new.wants.model_dump(), "webhook": webhook}


def _added(new: NewSubmission, row: Sequence[Any]) -> SubmissionRecord:
    """The record of an inserted submission, from what the database has made."""
    given = {name: value for name, value in new._asdict().items() if name in SubmissionRecord.model_fields}
    more = {"id": row[0], "shared": bool(row[1]), "has_webhook": row[2] is not None, "created_at": row[3]}
    empty = dict.fromkeys(SubmissionRecord.model_fields)
    return SubmissionRecord(**{**empty, **_FRESH, **given, **more})


def _insert_columns() -> dict[str, ColumnElement[Any]]:
    """The values of a new submission, from parameters with the names of `NewSubmission`."""
    before = submissions.alias()
    newest = (
        select(before).where(before.c.name == bindparam("name")).order_by(before.c.id.desc()).limit(literal_column("1"))
    )
    was_shared = newest.with_only_columns(before.c.shared).scalar_subquery()
    webhook = newest.with_only_columns(before.c.webhook).scalar_subquery()
    types = {column.name: column.type for column in submissions.c}
    return {
        **{name: bindparam(name, type_=types[name]) for name in NewSubmission._fields},
        **{name: literal(value, types[name]) for name, value in _FRESH.items()},
        "shared": or_(bindparam("shared", type_=Boolean), func.coalesce(was_shared, false())),
        "webhook": func.coalesce(bindparam("webhook", type_=types["webhook"]), webhook),
        "created_at": database_time(),
    }


def _insert_statement(connection: Connection) -> Insert:
    statement = insert_into(submissions, connection).values(_insert_columns()).on_conflict_do_nothing()
    # SQLite before 3.35 has no RETURNING; RHEL 9 has 3.34.
    return statement if connection.dialect.name == "sqlite" else statement.returning(*_MADE_BY_DATABASE)


def _insert_first_statement(connection: Connection) -> Select[Any]:
    """Inserts a submission and its event in the audit log under the conditions of `add_first`."""
    columns = _insert_columns()
    is_first = ~exists().where(studies.c.name == bindparam("name"))
    of_owner = submissions.c.owner == bindparam("owner")
    num_active = select(func.count()).where(of_owner, _IS_ACTIVE).scalar_subquery()
    has_room = num_active < bindparam("room", type_=Integer)
    source = select(*(value.label(name) for name, value in columns.items())).where(is_first, has_room)
    added = (
        insert_into(submissions, connection)
        .from_select(list(columns), source, include_defaults=False)
        .on_conflict_do_nothing()
        .returning(*_MADE_BY_DATABASE)
        .cte("added")
    )
    comes_first = submissions.c.priority >= bindparam("priority", type_=Integer)  # all others are older
    num_ahead = select(func.count()).where(of_owner, submissions.c.state == "waiting", comes_first).scalar_subquery()
    noted = event_of(added, connection).cte("noted")
    return select(added, num_ahead).add_cte(noted)


_FRESH = {
    "state": "waiting",
    "cancel_requested": False,
    "lease": 0,
    "num_deaths": 0,
    "progress": 0,
    "device_time_s": 0.0,
}
"""Values of each new submission."""
_MADE_BY_DATABASE = (submissions.c.id, submissions.c.shared, submissions.c.webhook, submissions.c.created_at)
_INSERT = Prepared(_insert_statement)
_INSERT_FIRST = Prepared(_insert_first_statement)
_INSERTED = Prepared(select(*_MADE_BY_DATABASE).where(submissions.c.uid == bindparam("of_uid")))


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


def _known(connection: Connection, uid: str) -> SubmissionRecord:
    found = _one(connection, submissions.c.uid == uid, for_update=True)
    if found is None:
        raise KeyError(uid)
    return found


def _one(connection: Connection, *conditions: Any, for_update: bool = False) -> SubmissionRecord | None:
    """The newest submission that meets the conditions."""
    found = select(*_COLUMNS).where(*conditions).order_by(submissions.c.id.desc()).limit(1)
    row = connection.execute(found.with_for_update() if for_update else found).mappings().one_or_none()
    return None if row is None else _record(row)


def _set(connection: Connection, found: SubmissionRecord, **values: Any) -> None:
    connection.execute(update(submissions).where(submissions.c.id == found.id).values(**values))


def _record(row: Any) -> SubmissionRecord:
    return SubmissionRecord.model_validate(dict(row))
