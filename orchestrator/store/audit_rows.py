"""The audit log: who did what, when."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, insert, select

from orchestrator.store.database_time import read_time
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.service_records import AuditRecord, Outcome
from orchestrator.store.tables import audit_events


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
        new = {"actor": actor, "action": action, "subject": subject, "outcome": outcome, "token": token}
        with self._engine.begin() as connection:
            at = read_time(connection)
            connection.execute(insert(audit_events).values(**new, at=at, details=dict(details or {})))

    def page(self, *, before: int | None = None, limit: int = 100) -> list[AuditRecord]:
        """Events, newest first; `before` is the lowest `id` of the previous page."""
        found = select(audit_events).order_by(audit_events.c.id.desc()).limit(limit)
        if before is not None:
            found = found.where(audit_events.c.id < before)
        with self._engine.connect() as connection:
            return [AuditRecord.model_validate(dict(row)) for row in connection.execute(found).mappings()]
