"""Requests that announce how studies ended. They are written together with the end, and sent afterwards."""

import uuid
from collections.abc import Callable

from sqlalchemy import ColumnElement, Connection, Engine, func, insert, select, update

from orchestrator.store.database_time import read_time
from orchestrator.store.reading import reading
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.service_records import SubmissionRecord, WebhookRecord, WebhookTarget
from orchestrator.store.tables import submissions, webhooks

CLAIM_S = 60.0
"""After this time, a request whose sender died is sent by another one."""


def announce_end(connection: Connection, ended: SubmissionRecord, now: float) -> None:
    """Add the request about a submission that has ended, if it has a webhook."""
    found = select(submissions.c.webhook).where(submissions.c.id == ended.id)
    target = connection.execute(found).scalar()
    if target is None:
        return
    shown = ("uid", "name", "owner", "state", "reason", "device_time_s", "created_at", "started_at", "ended_at")
    connection.execute(
        insert(webhooks).values(
            uid=uuid.uuid4().hex,
            submission=ended.uid,
            owner=ended.owner,
            target=target,
            content=ended.model_dump(mode="json", include=set(shown)),
            state="waiting",
            due_at=now,
            num_tries=0,
            created_at=now,
        )
    )


@retry_on_outage
class WebhookTable:
    """Reads and writes these requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(
        self, *, may_send: Callable[[WebhookTarget], bool] = lambda _: True, claim_s: float = CLAIM_S
    ) -> WebhookRecord | None:
        """The request that is due for longest, of those that may be sent now; `None` if there is none.

        Nobody else gets it for `claim_s` seconds.
        """
        due = select(webhooks.c.id, webhooks.c.target).order_by(webhooks.c.due_at, webhooks.c.id)
        with reading(self._engine) as connection:
            rows = connection.execute(due.where(*_is_due(read_time(connection)))).all()
        for row in rows:
            if may_send(WebhookTarget.model_validate(row.target)) and (claimed := self._claim(row.id, claim_s)):
                return claimed
        return None

    def _claim(self, row_id: int, claim_s: float) -> WebhookRecord | None:
        """Claim a request, unless another sender was faster."""
        with self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            now = read_time(connection)
            found = select(webhooks).where(webhooks.c.id == row_id, *_is_due(now))
            row = connection.execute(found.with_for_update(skip_locked=True)).mappings().one_or_none()
            if row is None:
                return None
            values = {"due_at": now + claim_s, "num_tries": row["num_tries"] + 1}
            connection.execute(update(webhooks).where(webhooks.c.id == row_id).values(**values))
            return WebhookRecord.model_validate({**row, "num_tries": row["num_tries"] + 1})

    def delivered(self, uid: str) -> None:
        """Note that a request arrived. Its secret is deleted."""
        self._end(uid, "delivered", None)

    def failed(self, uid: str, error: str) -> None:
        """Give a request up. Its secret is deleted."""
        self._end(uid, "failed", error)

    def put_off(self, uid: str, error: str, pause_s: float) -> None:
        """Let a request that did not arrive be sent again after `pause_s` seconds."""
        with self._engine.begin() as connection:
            values = {"due_at": read_time(connection) + pause_s, "error": error}
            mine = (webhooks.c.uid == uid, webhooks.c.state == "waiting")
            connection.execute(update(webhooks).where(*mine).values(**values))

    def num_due(self, *, within_s: float) -> int:
        """Number of requests that are due, or will be within a time."""
        with reading(self._engine) as connection:
            due = _is_due(read_time(connection) + within_s)
            return connection.execute(select(func.count()).select_from(webhooks).where(*due)).scalar_one()

    def of_submission(self, uid: str) -> list[WebhookRecord]:
        """The requests about a submission, newest first. It has several if it was resumed."""
        with reading(self._engine) as connection:
            found = select(webhooks).where(webhooks.c.submission == uid).order_by(webhooks.c.id.desc())
            return [WebhookRecord.model_validate(dict(row)) for row in connection.execute(found).mappings()]

    def _end(self, uid: str, state: str, error: str | None) -> None:
        with self._engine.begin() as connection:
            values = {"state": state, "error": error, "target": None, "ended_at": read_time(connection)}
            mine = (webhooks.c.uid == uid, webhooks.c.state == "waiting")
            connection.execute(update(webhooks).where(*mine).values(**values))


def _is_due(now: float) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return webhooks.c.state == "waiting", webhooks.c.due_at <= now
