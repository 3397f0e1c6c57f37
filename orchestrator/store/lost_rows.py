"""Cleans up after a driver that died."""

from sqlalchemy import Connection, select, update

from orchestrator.store.records import ExecutionRecord
from orchestrator.store.spent_time import last_sign
from orchestrator.store.tables import attempts, executions, stages, trials


def recover(connection: Connection, study_id: int, now: float) -> list[ExecutionRecord]:
    """Mark a study's running executions and attempts as lost, and return the executions.

    Executions come first, so that nothing begins for a lost one.
    """
    running = (executions.c.study_id == study_id, executions.c.state == "running")
    left = connection.execute(select(executions).where(*running).order_by(executions.c.number)).mappings()
    lost = [ExecutionRecord.model_validate(dict(row)) for row in left]
    for one in lost:  # the time until somebody resumes the study is a pause
        ended = last_sign(connection, one.id, one.started_at)
        values = {"state": "lost", "reason": "its process died", "ended_at": ended}
        connection.execute(update(executions).where(executions.c.id == one.id).values(**values))
    of_executions = select(executions.c.id).where(executions.c.study_id == study_id)
    connection.execute(
        update(attempts)
        .where(attempts.c.execution_id.in_(of_executions), attempts.c.state == "running")
        .values(state="lost", ended_at=now)
    )
    of_stages = select(stages.c.id).where(stages.c.study_id == study_id)
    connection.execute(
        update(trials).where(trials.c.stage_id.in_(of_stages), trials.c.state == "running").values(state="waiting")
    )
    connection.execute(
        update(stages)
        .where(stages.c.study_id == study_id, stages.c.state == "running")
        .values(state="interrupted", reason="its process died")
    )
    return lost
