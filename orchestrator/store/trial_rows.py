"""Rows of trials, attempts, reports and checkpoints, written in transactions of `orchestrator.store.repository`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from orchestrator.store.prepared_statements import prepared_insert, prepared_insert_of_new, prepared_update
from orchestrator.store.records import AttemptRecord, EndedTrial, ExecutionRecord, TrialRecord
from orchestrator.store.stale_writes import fence_attempt
from orchestrator.store.study_files import folder_of_study, to_stored
from orchestrator.store.tables import attempts, checkpoints, reports, stages, studies, trials
from trainers.config import CheckpointRecord, EpochReport

_END_COLUMNS = ("state", "metrics", "details", "reason", "error", "ended_at")
_INSERT_TRIAL = prepared_insert(
    trials,
    "stage_id",
    "number",
    "point",
    "sampler_state",
    "seed",
    "started_at",
    key=trials.c.id,
    fixed={"state": "running", "metrics": {}, "details": {}},
)
_INSERT_ATTEMPT = prepared_insert(
    attempts,
    "trial_id",
    "execution_id",
    "number",
    "started_at",
    key=attempts.c.id,
    fixed={"state": "running"},
)
_END_ATTEMPT = prepared_update(
    attempts,
    attempts.c.id == bindparam("attempt_id"),
    attempts.c.state == "running",
    columns=("state", "ended_at"),
)
_END_TRIAL = prepared_update(
    trials,
    trials.c.id == bindparam("trial_id"),
    columns=_END_COLUMNS,
)
_INSERT_REPORT = prepared_insert_of_new(reports, "trial_id", "epoch", "values", "reported_at")
_REPLACE_REPORT = prepared_update(
    reports,
    reports.c.trial_id == bindparam("of_trial_id"),
    reports.c.epoch == bindparam("of_epoch"),
    columns=("values",),
)
_LEAVE_TRIAL = prepared_update(trials, trials.c.id == bindparam("trial_id"), columns=("state",))


def insert_trial(connection: Connection, fields: Mapping[str, Any]) -> TrialRecord:
    """Write a running trial; `fields` are the fields of `TrialRecord` that are known at its start."""
    trial_id = _INSERT_TRIAL.key(connection, **fields)
    return TrialRecord.model_construct(
        id=trial_id, state="running", metrics={}, details={}, reason=None, error=None, ended_at=None, **fields
    )


def insert_attempt(
    connection: Connection, trial_id: int, execution: ExecutionRecord, *, number: int, now: float
) -> AttemptRecord:
    """Write a running attempt; `number` is the number of earlier attempts of the trial."""
    attempt_id = _INSERT_ATTEMPT.key(
        connection,
        trial_id=trial_id,
        execution_id=execution.id,
        number=number,
        started_at=now,
    )
    return AttemptRecord(id=attempt_id, trial_id=trial_id, number=number)


def begun_trial(
    connection: Connection, stage_id: int, number: int, execution: ExecutionRecord
) -> tuple[TrialRecord, AttemptRecord] | None:
    """The trial with this number, if the execution has begun it, and its first attempt."""
    given = (trials.c.stage_id == stage_id, trials.c.number == number)
    row = connection.execute(select(trials).where(*given)).mappings().one_or_none()
    if row is None:
        return None
    first = (attempts.c.trial_id == row["id"], attempts.c.number == 0, attempts.c.execution_id == execution.id)
    attempt_id = connection.execute(select(attempts.c.id).where(*first)).scalar_one()
    return TrialRecord.model_validate(dict(row)), AttemptRecord(id=attempt_id, trial_id=row["id"], number=0)


def count_lost_since_report(connection: Connection, trial: TrialRecord, rows: Sequence[Any]) -> int:
    """Number of attempts of a trial that were lost since it last finished an epoch, or since it runs again."""
    newest = select(func.max(reports.c.reported_at)).where(reports.c.trial_id == trial.id)
    last_report = connection.execute(newest).scalar()
    return sum(
        row.state == "lost"
        and row.started_at >= trial.started_at
        and (last_report is None or row.started_at > last_report)
        for row in rows
    )


def write_report(connection: Connection, attempt: AttemptRecord, report: EpochReport, now: float) -> bool:
    """Write or replace the report of an epoch, and return whether it is new.

    Raises:
        StaleAttemptError: The attempt is no longer running.
    """
    fence_attempt(connection, attempt)
    which = {"trial_id": attempt.trial_id, "epoch": report.epoch}
    values = report.model_dump(mode="json")
    is_new = _INSERT_REPORT.count(connection, **which, values=values, reported_at=now) == 1
    if not is_new:
        _REPLACE_REPORT.count(connection, **{f"of_{name}": value for name, value in which.items()}, new_values=values)
    return is_new


def write_end(connection: Connection, ended: EndedTrial, now: float, *, artifact_root: Path | None) -> None:
    """Write how an attempt ended.

    Args:
        connection: In a transaction.
        ended: What to write.
        now: The time of the study.
        artifact_root: See `Store.open`.

    Raises:
        StaleAttemptError: The attempt is no longer running.
    """
    trial = ended.trial
    end_attempt(connection, ended.attempt, ended.state, now)
    if ended.state == "interrupted":
        _LEAVE_TRIAL.count(connection, trial_id=trial.id, new_state=trial.state)
    else:
        _replace_checkpoints(connection, trial.id, ended.checkpoints, artifact_root)
        _END_TRIAL.count(
            connection, trial_id=trial.id, **{f"new_{name}": getattr(trial, name) for name in _END_COLUMNS}
        )


def end_attempt(connection: Connection, attempt: AttemptRecord, state: str, now: float) -> None:
    """Write how an attempt ended, without its trial.

    Raises:
        StaleAttemptError: The attempt is no longer running.
    """
    if _END_ATTEMPT.count(connection, attempt_id=attempt.id, new_state=state, new_ended_at=now) != 1:
        fence_attempt(connection, attempt, ended=state)


def read_checkpoints(connection: Connection, trial_id: int, *, artifact_root: Path | None) -> list[CheckpointRecord]:
    """A trial's checkpoints, oldest first, with absolute paths."""
    found = select(checkpoints).where(checkpoints.c.trial_id == trial_id).order_by(checkpoints.c.epoch)
    rows = [
        {key: value for key, value in row.items() if key != "trial_id"} for row in connection.execute(found).mappings()
    ]
    folder = _folder_of_trial(connection, trial_id, artifact_root) if rows else Path()
    return [CheckpointRecord.model_validate({**row, "path": folder / row["path"]}) for row in rows]


def _replace_checkpoints(
    connection: Connection, trial_id: int, records: Sequence[CheckpointRecord], artifact_root: Path | None
) -> None:
    if records:
        folder = _folder_of_trial(connection, trial_id, artifact_root)
        connection.execute(delete(checkpoints).where(checkpoints.c.trial_id == trial_id))
        rows = [
            {"trial_id": trial_id, **record.model_dump(mode="json"), "path": to_stored(record.path, folder)}
            for record in records
        ]
        connection.execute(insert(checkpoints), rows)


def _folder_of_trial(connection: Connection, trial_id: int, artifact_root: Path | None) -> Path:
    """Folder of the trial's study."""
    joined = trials.join(stages, stages.c.id == trials.c.stage_id).join(studies, studies.c.id == stages.c.study_id)
    found = select(studies.c.name, studies.c.uid).select_from(joined).where(trials.c.id == trial_id)
    row = connection.execute(found).one()
    return folder_of_study(artifact_root or Path(), row.name, row.uid)
