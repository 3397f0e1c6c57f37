"""The audit log: who did what, when."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, FromClause, bindparam, insert, literal, select
from sqlalchemy.sql.dml import Insert

from orchestrator.store.database_time import database_time
from orchestrator.store.prepared_statements import Prepared
from orchestrator.store.reading import reading
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.service_records import Actor, AuditRecord, Outcome
from orchestrator.store.tables import audit_events
from orchestrator.store.upserts import insert_into


@retry_on_outage
class AuditLog:
    """Writes and reads the log; nothing in it changes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self,
        actor: str,
        action: str,
        subject: str,
        *,
        outcome: Outcome = "done",
        token: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an event.

        Args:
            actor: The owner who acts; `anonymous` without a valid token.
            action: What, such as `submit` or `token.create`.
            subject: On what, such as the name of a study.
            outcome: Whether it was done.
            token: The `uid` of the token that was used; never its secret.
            details: More facts, without secrets.
        """
        with self._engine.begin() as connection:
            write_event(connection, Actor(actor, action, token), subject, outcome=outcome, details=details)

    def page(self, *, before: int | None = None, limit: int = 100) -> list[AuditRecord]:
        """Events, newest first; `before` is the lowest `id` of the previous page."""
        found = select(audit_events).order_by(audit_events.c.id.desc()).limit(limit)
        if before is not None:
            found = found.where(audit_events.c.id < before)
        with reading(self._engine) as connection:
            return [AuditRecord.model_validate(dict(row)) for row in connection.execute(found).mappings()]


def write_event(
    connection: Connection,
    by: Actor,
    subject: str,
    *,
    outcome: Outcome = "done",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add an event within a transaction; arguments as in `AuditLog.add`."""
    new = {"actor": by.owner, "action": by.action, "token": by.token, "subject": subject, "outcome": outcome}
    _INSERT.count(connection, **new, details=dict(details or {}))


def event_of(added: FromClause, connection: Connection) -> Insert:
    """Inserts an event if a statement added a row and the parameter `actor` is given.

    Other parameters are `action`, `token`, `name` for the subject, and `details`.
    """
    columns = audit_events.c
    names = ("actor", "action", "token", "details")
    values: dict[str, ColumnElement[Any]] = {
        **{name: bindparam(name, type_=columns[name].type) for name in names},
        "subject": bindparam("name", type_=columns.subject.type),
        "outcome": literal("done"),
        "at": database_time(),
    }
    source = select(*(value.label(name) for name, value in values.items())).select_from(added)
    source = source.where(values["actor"].is_not(None))
    return insert_into(audit_events, connection).from_select(list(values), source, include_defaults=False)


_NAMES = ("actor", "action", "token", "subject", "outcome", "details")
_INSERT = Prepared(insert(audit_events).values({**{name: bindparam(name) for name in _NAMES}, "at": database_time()}))
