"""The statements that add a submission."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.sql.dml import Insert

from orchestrator.store.audit_rows import event_of
from orchestrator.store.database_time import database_time
from orchestrator.store.prepared_statements import Prepared
from orchestrator.store.service_records import NewSubmission, SubmissionRecord
from orchestrator.store.submission_access import IS_ACTIVE
from orchestrator.store.tables import studies, submissions
from orchestrator.store.upserts import insert_into


def insert_new(connection: Connection, new: NewSubmission) -> SubmissionRecord | None:
    """Insert a submission, unless it repeats another one or its study is active."""
    values = insert_values(new)
    if connection.dialect.name == "sqlite":
        row = _INSERTED.first(connection, of_uid=new.uid) if _INSERT.count(connection, **values) else None
    else:
        row = _INSERT.first(connection, **values)
    return None if row is None else added_submission(new, row)


def insert_values(new: NewSubmission) -> dict[str, Any]:
    """The parameters of the statements."""
    webhook = None if new.webhook is None else new.webhook.model_dump()
    return {**new._asdict(), "wants": new.wants.model_dump(), "webhook": webhook}


def added_submission(new: NewSubmission, row: Sequence[Any]) -> SubmissionRecord:
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
    num_active = select(func.count()).where(of_owner, IS_ACTIVE).scalar_subquery()
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
INSERT_FIRST = Prepared(_insert_first_statement)
"""Gives what `added_submission` needs, and the number of submissions ahead; PostgreSQL only."""
_INSERTED = Prepared(select(*_MADE_BY_DATABASE).where(submissions.c.uid == bindparam("of_uid")))
