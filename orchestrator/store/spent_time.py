"""Time that earlier executions spent on a study or a stage. The time between executions does not count."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from orchestrator.store.records import ExecutionRecord
from orchestrator.store.tables import attempts, executions, reports, stages, studies, trials

_FAR_FUTURE_S = 1e12
_PER_QUERY = 500


def study_time_s(connection: Connection, study_id: int, *, before: ExecutionRecord) -> float:
    """Seconds that the executions of a study before one took. A lost one ended with its last report or attempt."""
    found = select(executions.c.id, executions.c.state, executions.c.started_at, executions.c.ended_at)
    conditions = (executions.c.study_id == study_id, executions.c.number < before.number)
    rows = connection.execute(found.where(*conditions)).all()
    total = 0.0
    for row in rows:
        is_lost = row.state in ("lost", "running")
        ended = last_sign(connection, row.id, row.started_at) if is_lost else row.ended_at
        total += max(ended - row.started_at, 0.0)
    return total


def last_sign(connection: Connection, execution_id: int, started_at: float) -> float:
    """When an execution whose process died wrote its last report, or ended its last attempt."""
    return max((end for _, end in _spans(connection, attempts.c.execution_id == execution_id)), default=started_at)


def newest_time(connection: Connection, study_id: int) -> float:
    """The newest time in the rows of a study; 0 if it has none."""
    of_study = trials.join(stages, stages.c.id == trials.c.stage_id)
    tried = attempts.join(of_study, trials.c.id == attempts.c.trial_id)
    mine = stages.c.study_id == study_id
    newest = (
        select(func.max(studies.c.created_at)).where(studies.c.id == study_id),
        *(
            select(func.max(column)).where(executions.c.study_id == study_id)
            for column in (executions.c.started_at, executions.c.ended_at)
        ),
        *(select(func.max(column)).where(mine) for column in (stages.c.started_at, stages.c.ended_at)),
        *(
            select(func.max(column)).select_from(tried).where(mine)
            for column in (attempts.c.started_at, attempts.c.ended_at)
        ),
        select(func.max(reports.c.reported_at))
        .select_from(reports.join(of_study, trials.c.id == reports.c.trial_id))
        .where(mine),
    )
    return max(connection.execute(one).scalar() or 0.0 for one in newest)


def trial_times_s(connection: Connection, trial_ids: Collection[int]) -> dict[int, float]:
    """Seconds of all attempts of trials, by trial."""
    total = dict.fromkeys(trial_ids, 0.0)
    ids = list(total)
    for begin in range(0, len(ids), _PER_QUERY):
        for trial_id, began, ended in _attempts(connection, attempts.c.trial_id.in_(ids[begin : begin + _PER_QUERY])):
            total[trial_id] += max(ended - began, 0.0)
    return total


def stage_time_s(connection: Connection, stage_id: int) -> float:
    """Seconds from the first to the last attempt of a stage in each execution, added up."""
    of_stage = attempts.c.trial_id.in_(select(trials.c.id).where(trials.c.stage_id == stage_id))
    ids = connection.execute(select(attempts.c.execution_id).where(of_stage).distinct()).scalars().all()
    total = 0.0
    for execution_id in ids:
        spans = _spans(connection, of_stage, attempts.c.execution_id == execution_id)
        total += max(end for _, end in spans) - min(start for start, _ in spans)
    return total


def trained_macs(connection: Connection, study_id: int, *, but_stage: int | None = None) -> float:
    """Multiply-accumulates of all trainings of a study, except those of one stage."""
    joined = reports.join(trials, trials.c.id == reports.c.trial_id).join(stages, stages.c.id == trials.c.stage_id)
    found = select(reports.c["values"]).select_from(joined).where(stages.c.study_id == study_id)
    if but_stage is not None:
        found = found.where(stages.c.id != but_stage)
    return float(sum(values.get("training_macs", 0.0) for values in connection.execute(found).scalars()))


def _spans(connection: Connection, *conditions: Any) -> Sequence[tuple[float, float]]:
    return [(began, ended) for _, began, ended in _attempts(connection, *conditions)]


def _attempts(connection: Connection, *conditions: Any) -> Sequence[tuple[int, float, float]]:
    """Trial, start and end of attempts. The end of one whose process died is its last report."""
    last = (
        select(func.max(reports.c.reported_at))
        .where(
            reports.c.trial_id == attempts.c.trial_id,
            reports.c.reported_at.between(attempts.c.started_at, func.coalesce(attempts.c.ended_at, _FAR_FUTURE_S)),
        )
        .scalar_subquery()
    )
    columns = (attempts.c.trial_id, attempts.c.state, attempts.c.started_at, attempts.c.ended_at)
    found = select(*columns, last.label("reported")).where(*conditions)
    spans = []
    for row in connection.execute(found).all():
        is_lost = row.ended_at is None or row.state == "lost"
        ended = (row.reported or row.started_at) if is_lost else row.ended_at
        spans.append((row.trial_id, row.started_at, ended))
    return spans
