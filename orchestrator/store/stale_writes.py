"""Refuses what comes too late: from an attempt, or an execution, that is no longer the running one."""

from sqlalchemy import Connection, select

from orchestrator.store.records import AttemptRecord, ExecutionRecord
from orchestrator.store.retrying import is_repeated
from orchestrator.store.tables import attempts, executions


class StaleAttemptError(RuntimeError):
    """An attempt that is no longer the running one of its trial; what it brings is refused."""


class StaleExecutionError(StaleAttemptError):
    """An execution that is no longer the running one of its study; what it writes is refused."""


def fence_attempt(connection: Connection, attempt: AttemptRecord, *, ended: str | None = None) -> None:
    """Refuse what an attempt that is not running brings; `ended`: unless this very call ended it so, unheard."""
    found = select(attempts.c.state).where(attempts.c.id == attempt.id).with_for_update()
    state = connection.execute(found).scalar_one_or_none()
    if state != "running" and not (is_repeated() and state == ended):
        raise StaleAttemptError(
            f"attempt {attempt.number} of trial row {attempt.trial_id} must be running to bring results, "
            f"but it is {state or 'deleted'}. Its results are refused."
        )


def fence_execution(connection: Connection, execution: ExecutionRecord | None, *, ended: str | None = None) -> None:
    """The same of an execution; until the end of the transaction no other one can begin."""
    if execution is None:
        return
    found = select(executions.c.state).where(executions.c.id == execution.id).with_for_update(read=True)
    state = connection.execute(found).scalar_one_or_none()
    if state != "running" and not (is_repeated() and state == ended):
        raise StaleExecutionError(
            f"execution {execution.number + 1} of the study must be running to go on, but it is "
            f"{state or 'deleted'}: another process has taken the study over, or deleted it."
        )
