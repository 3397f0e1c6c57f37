"""The leases of running submissions, inside a transaction: who runs next, how long, and what becomes of a dead driver.

A running submission has a lease until `lease_until` by the clock of the database, which its driver renews. Each claim
gets the next number as `lease`; writes with an older number are refused, so that a driver which was believed dead
changes nothing.
"""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select, update

from orchestrator.store.owner_rows import charge, owners_in_turn
from orchestrator.store.service_records import PoolFull, SubmissionRecord
from orchestrator.store.submission_access import (
    SUBMISSION_COLUMNS,
    change_submission,
    known_submission,
    newest_submission,
    submission_of_row,
)
from orchestrator.store.tables import attempts, executions, reports, studies, submissions
from orchestrator.store.webhook_rows import announce_end

LEASE_S = 60.0
"""Time after its last heartbeat at which a driver is taken for dead."""
MAX_DEATHS = 5
"""A study whose drivers died this often without any progress fails."""
_MAX_EXAMINED = 50
"""Waiting submissions of one owner that a claim looks at. Those that can never run do not hold up other owners."""


class LeaseLostError(RuntimeError):
    """A driver no longer has the lease of its submission: another one was started, or it was cancelled."""


def held_submission(connection: Connection, uid: str, lease: int) -> SubmissionRecord:
    """A running submission that is held with that lease, locked.

    Raises:
        LeaseLostError: It is not.
    """
    found = newest_submission(connection, submissions.c.uid == uid, for_update=True)
    if found is None or found.state != "running" or found.lease != lease:
        state = "deleted" if found is None else found.state
        raise LeaseLostError(
            f"submission {uid} must be running with lease {lease} to be continued by this process, but it is {state}"
            + (f" with lease {found.lease}" if found is not None and found.lease != lease else "")
            + ". Another process has taken it over."
        )
    return found


def is_driven(now: float) -> ColumnElement[bool]:
    """Running, and its driver has not stopped answering."""
    return and_(submissions.c.state == "running", submissions.c.lease_until >= now)


def waiting_in_turn(connection: Connection, now: float) -> Iterator[SubmissionRecord]:
    """Waiting submissions in the order in which they should run. Rows that another transaction holds are skipped."""
    for owner in owners_in_turn(connection, now):
        mine = (submissions.c.state == "waiting", submissions.c.owner == owner)
        order = (submissions.c.priority.desc(), submissions.c.id)
        first = select(*SUBMISSION_COLUMNS).where(*mine).order_by(*order).limit(_MAX_EXAMINED)
        rows = connection.execute(first.with_for_update(skip_locked=True)).mappings().all()
        yield from map(submission_of_row, rows)


def let_all_wait(connection: Connection, full: PoolFull) -> None:
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


def give_up_dead(connection: Connection, now: float, lease_s: float) -> None:
    """Let submissions wait again whose drivers have not renewed their lease.

    A lease that ends far in the future was written before the clock of an SQLite machine was set back.
    """
    lapsed = or_(submissions.c.lease_until < now, submissions.c.lease_until > now + 2 * max(lease_s, LEASE_S))
    dead = select(*SUBMISSION_COLUMNS).where(submissions.c.state == "running", lapsed).with_for_update(skip_locked=True)
    for row in connection.execute(dead).mappings().all():
        give_up_submission(connection, submission_of_row(row), now, "its driver stopped answering")


def give_up_submission(
    connection: Connection, found: SubmissionRecord, now: float, reason: str, *, at_last: str | None = None
) -> None:
    """Let a submission wait for another driver, or end it; the arguments are those of `SubmissionQueue.give_up`."""
    num_deaths = 1 if _has_progressed(connection, found.name, since=found.progress) else found.num_deaths + 1
    if found.cancel_requested:
        end_submission(connection, found, now, "cancelled", None)
    elif num_deaths >= MAX_DEATHS:
        ended = "died" if at_last is None else "ended so"
        why = f"{(at_last or reason).rstrip('.')}; {num_deaths} drivers {ended} one after another without any progress"
        end_submission(connection, found, now, "failed", f"{why}. See: vitsearch logs {found.name}")
    else:
        end_submission(connection, found, now, "waiting", f"{reason}; it will be resumed")
    change_submission(connection, found, num_deaths=num_deaths)


def end_submission(connection: Connection, found: SubmissionRecord, now: float, state: str, reason: str | None) -> None:
    """Write how a driver ended, free its devices and charge its owner; `waiting` is not yet the end."""
    if found.cancel_requested and state not in ("complete", "failed"):
        state, reason = "cancelled", None
    spent_s = charge_owner(connection, found, now)
    over = {} if state == "waiting" else {"ended_at": now, "cancel_requested": False}
    change_submission(
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
        announce_end(connection, known_submission(connection, found.uid), now)


def charge_owner(connection: Connection, found: SubmissionRecord, now: float) -> float:
    """Charge the owner for the time since the last heartbeat; returns it in device seconds.

    A driver that was silent for longer than its lease is charged for the lease only.
    """
    silent_s = min(max(now - (found.heartbeat_at or now), 0.0), LEASE_S)
    spent_s = silent_s * max(found.num_gpus, 1.0)
    charge(connection, found.owner, spent_s, now)
    return spent_s


def newest_execution(connection: Connection, name: str) -> int:
    """The id of the newest execution of a study, which those of the next driver exceed."""
    newest = select(func.max(executions.c.id)).join(studies, studies.c.id == executions.c.study_id)
    return connection.execute(newest.where(studies.c.name == name)).scalar() or 0


def _has_progressed(connection: Connection, name: str, *, since: int) -> bool:
    """Whether executions of a study after the one with the id `since` ended an attempt or reported an epoch.

    In a submission that an earlier version claimed, `since` may be a number of reports. If it exceeds all ids, the
    driver is taken to have progressed.

    Reports are compared with the begin of their attempts by the same clock, which is the study's.
    """
    if since > newest_execution(connection, name):
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
