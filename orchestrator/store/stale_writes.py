"""Rejects late writes of attempts and executions that are no longer running."""

from sqlalchemy import Connection, bindparam, select

from orchestrator.store.prepared_statements import Prepared
from orchestrator.store.records import AttemptRecord, ExecutionRecord
from orchestrator.store.retrying import is_repeated
from orchestrator.store.tables import attempts, executions

_STATE_OF_ATTEMPT = Prepared(select(attempts.c.state).where(attempts.c.id == bindparam("attempt_id")).with_for_update())


class StaleAttemptError(RuntimeError):
    """A write of an attempt that is no longer the running one of its trial."""


class StaleExecutionError(StaleAttemptError):
    """A write of an execution that is no longer the running one of its study."""


def fence_attempt(connection: Connection, attempt: AttemptRecord, *, ended: str | None = None) -> None:
    """Raise unless an attempt is running.

    Args:
        connection: A transaction.
        attempt: The attempt.
        ended: A state that is accepted too if this call is repeated, because the first try may have set it.
    """
    row = _STATE_OF_ATTEMPT.first(connection, attempt_id=attempt.id)
    state = None if row is None else row[0]
    if state != "running" and not (is_repeated() and state == ended):
        raise StaleAttemptError(
            f"attempt {attempt.number} of trial row {attempt.trial_id} must be running to write results, "
            f"but it is {state or 'deleted'}. Its results are rejected; a newer attempt replaces it."
        )


def fence_execution(connection: Connection, execution: ExecutionRecord | None, *, ended: str | None = None) -> None:
    """Raise unless an execution is running. No other one can begin until the end of the transaction."""
    if execution is None:
        return
    found = select(executions.c.state).where(executions.c.id == execution.id).with_for_update(read=True)
    state = connection.execute(found).scalar_one_or_none()
    if state != "running" and not (is_repeated() and state == ended):
        raise StaleExecutionError(
            f"execution {execution.number + 1} of the study must be running to continue, but it is "
            f"{state or 'deleted'}: another process has taken over the study, or deleted it."
        )
