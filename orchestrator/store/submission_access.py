"""Reads and changes rows of submitted studies inside a transaction."""

from typing import Any

from sqlalchemy import Connection, or_, select, update

from orchestrator.store.service_records import ACTIVE, SubmissionRecord
from orchestrator.store.tables import submissions

_PLAIN = [column for column in submissions.c if column.name not in ("spec", "spec_text", "webhook")]
SUBMISSION_COLUMNS = [*_PLAIN, submissions.c.webhook.is_not(None).label("has_webhook")]
"""What a record has; study file and webhook are read on their own."""
IS_ACTIVE = or_(*(submissions.c.state == state for state in sorted(ACTIVE)))
"""Condition of rows that wait or run."""


def known_submission(connection: Connection, uid: str) -> SubmissionRecord:
    """The submission with that identifier, locked.

    Raises:
        KeyError: There is none.
    """
    found = newest_submission(connection, submissions.c.uid == uid, for_update=True)
    if found is None:
        raise KeyError(uid)
    return found


def newest_submission(connection: Connection, *conditions: Any, for_update: bool = False) -> SubmissionRecord | None:
    """The newest submission that meets the conditions."""
    found = select(*SUBMISSION_COLUMNS).where(*conditions).order_by(submissions.c.id.desc()).limit(1)
    row = connection.execute(found.with_for_update() if for_update else found).mappings().one_or_none()
    return None if row is None else submission_of_row(row)


def change_submission(connection: Connection, found: SubmissionRecord, **values: Any) -> None:
    """Write columns of a submission."""
    connection.execute(update(submissions).where(submissions.c.id == found.id).values(**values))


def submission_of_row(row: Any) -> SubmissionRecord:
    """The record of a row of `SUBMISSION_COLUMNS`."""
    return SubmissionRecord.model_validate(dict(row))
