"""Reads and writes our tables. Every method is one transaction, which includes its events for MLflow."""

import os
import platform
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, select, update

from orchestrator.store.audit_rows import AuditLog
from orchestrator.store.database import find_database, open_database
from orchestrator.store.database_time import read_time
from orchestrator.store.growth_rows import GrowthRows, write_growth
from orchestrator.store.lost_rows import recover
from orchestrator.store.outbox_rows import StudyOutbox
from orchestrator.store.owner_rows import OwnerTable
from orchestrator.store.prepared_statements import Prepared, prepared_insert
from orchestrator.store.reading import reading
from orchestrator.store.records import (
    AttemptRecord,
    EndedTrial,
    ExecutionRecord,
    RunState,
    StageRecord,
    StudyRecord,
    TrialRecord,
)
from orchestrator.store.retrying import WAIT_S, is_repeated, retries_of, retry_on_outage
from orchestrator.store.score_rows import ScoreTable
from orchestrator.store.spent_time import newest_time, stage_time_s, study_time_s, trained_macs, trial_times_s
from orchestrator.store.stale_writes import fence_execution
from orchestrator.store.study_clock import StudyClock
from orchestrator.store.study_files import folder_of_study
from orchestrator.store.study_names import owner_of
from orchestrator.store.study_pages import StudyPages
from orchestrator.store.submission_rows import SubmissionQueue, forget_submissions
from orchestrator.store.tables import (
    attempts,
    checkpoints,
    executions,
    outbox,
    reports,
    stages,
    studies,
    tracked_runs,
    trials,
)
from orchestrator.store.token_rows import TokenTable
from orchestrator.store.trial_rows import (
    begun_trial,
    count_lost_since_report,
    end_attempt,
    insert_attempt,
    insert_trial,
    read_checkpoints,
    write_end,
    write_report,
)
from orchestrator.store.webhook_rows import WebhookTable
from search_spaces.dimensions import Point
from trainers.config import CheckpointRecord, EpochReport

Events = Sequence[str]
"""Events for MLflow as JSON (`orchestrator.tracking.events.event_to_json`)."""

MAX_LOST_ATTEMPTS = 5
"""A trial whose process died this often without a new epoch fails instead of being resumed."""
_FIND_STUDY = Prepared(select(studies.c.id).where(studies.c.name == bindparam("of_name")))
_OWE = prepared_insert(outbox, "study_id", "event", "created_at", fixed={"num_tries": 0, "rejected": 0})


@retry_on_outage
class Store:
    """Our database. Methods are retried while it is unreachable.

    Raises:
        orchestrator.store.errors.DatabaseUnavailableError: It is unreachable for too long, or rejects writes.
    """

    def __init__(self, engine: Engine, *, tracking: bool = True, artifact_root: Path | None = None) -> None:
        self._engine = engine
        self._artifact_root = artifact_root
        self._tracking = tracking
        self._known_events: dict[int, bool] = {}
        self._kept: list[Connection] = []
        self.clock = StudyClock()
        """The clock of the study that this process runs."""

    @classmethod
    def open(
        cls, url: str, *, artifact_root: Path | None = None, tracking: bool = True, wait_s: float = WAIT_S
    ) -> "Store":
        """Connect to `url`, and create or migrate the tables if necessary.

        Args:
            url: Address of an SQLite or PostgreSQL database.
            artifact_root: Folder of all artifacts; rows keep the paths below it relative to their study's folder.
            tracking: If false, no events are written for studies that never had any.
            wait_s: How long later calls are retried while the database is unreachable.
        """
        return cls(open_database(url, wait_s=wait_s), tracking=tracking, artifact_root=artifact_root)

    @classmethod
    def find(cls, url: str, *, artifact_root: Path | None = None, wait_s: float = WAIT_S) -> "Store | None":
        """Connect to `url` if it contains a vitsearch database; nothing is created. Arguments as in `open`."""
        engine = find_database(url, wait_s=wait_s)
        return None if engine is None else cls(engine, artifact_root=artifact_root)

    def close(self) -> None:
        while self._kept:
            self._kept.pop().close()
        self._engine.dispose()

    def on_return(self, action: Callable[[], None]) -> None:
        """Call `action` when the database answers again after an outage, before anything else is written."""
        retries_of(self._engine).on_return = action

    # --- studies ---

    def create_study(
        self,
        name: str,
        *,
        spec: Mapping[str, Any],
        digest: str,
        data_digest: str,
        stage_names: Sequence[tuple[str, str]],
    ) -> StudyRecord:
        """Write a new study and its stages (name, kind) as waiting."""
        now = self.clock.now()
        with self._engine.begin() as connection:
            if is_repeated():
                row = connection.execute(select(studies).where(studies.c.name == name)).mappings().one_or_none()
                if row is not None:
                    return StudyRecord.model_validate(dict(row))
            study_id = _insert(
                connection,
                studies,
                uid=uuid.uuid4().hex[:12],
                name=name,
                spec=dict(spec),
                spec_digest=digest,
                data_digest=data_digest,
                state="waiting",
                owner=owner_of(name),
                created_at=now,
                updated_at=now,
            )
            for position, (stage_name, kind) in enumerate(stage_names):
                _insert(
                    connection,
                    stages,
                    study_id=study_id,
                    position=position,
                    name=stage_name,
                    kind=kind,
                    state="waiting",
                    result={},
                )
            return self._study(connection, studies.c.id == study_id)

    def find_study(self, name: str) -> StudyRecord | None:
        """The study with that name, or `None`."""
        with reading(self._engine) as connection:
            row = connection.execute(select(studies).where(studies.c.name == name)).mappings().one_or_none()
            return None if row is None else StudyRecord.model_validate(dict(row))

    def has_study(self, name: str) -> bool:
        """Whether there is a study with that name."""
        with reading(self._engine) as connection:
            return _FIND_STUDY.first(connection, of_name=name) is not None

    def list_studies(self) -> list[StudyRecord]:
        """All studies, newest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(studies).order_by(studies.c.id.desc())).mappings()
            return [StudyRecord.model_validate(dict(row)) for row in rows]

    def study_folder(self, study: StudyRecord) -> Path:
        """Folder of a study's checkpoints, plots and champion."""
        return folder_of_study(self._artifact_root or Path(), study.name, study.uid)

    def delete_study(self, study_id: int) -> list[str]:
        """Delete a study with everything that belongs to it, and its submissions that no driver has.

        Returns:
            Identifiers of the deleted submissions.
        """
        uids: list[str] = []
        with self._engine.begin() as connection:
            found = connection.execute(
                select(studies.c.uid, studies.c.name).where(studies.c.id == study_id)
            ).one_or_none()
            if found is not None:
                runs = tracked_runs.c.key.startswith(f"{found.uid}/", autoescape=True)
                connection.execute(delete(tracked_runs).where(runs))
                uids = forget_submissions(connection, found.name)
            connection.execute(delete(studies).where(studies.c.id == study_id))
        return uids

    # --- executions ---

    def begin_execution(
        self,
        study_id: int,
        *,
        setup: Mapping[str, Any] | None = None,
        events: Callable[[ExecutionRecord, Sequence[ExecutionRecord]], Events] = lambda *_: (),
        growth: GrowthRows | None = None,
    ) -> ExecutionRecord:
        """Begin an execution by this process. Rows that an earlier execution left running are marked as lost.

        Args:
            study_id: The study.
            setup: Engine, pool and scheduler.
            events: Makes the events for MLflow about the new execution and the lost ones.
            growth: What a changed study file adds to the study.
        """
        with self._engine.begin() as connection:
            now = self.clock.begin(not_before=newest_time(connection, study_id))
            lost = recover(connection, study_id, now)
            if growth is not None:
                write_growth(connection, study_id, growth, now)
            count = connection.execute(
                select(func.count()).select_from(executions).where(executions.c.study_id == study_id)
            ).scalar_one()
            execution_id = _insert(
                connection,
                executions,
                study_id=study_id,
                number=count,
                state="running",
                host=platform.node(),
                pid=os.getpid(),
                code_version=version("vitsearch"),
                setup=dict(setup or {}),
                started_at=now,
            )
            connection.execute(
                update(studies).where(studies.c.id == study_id).values(state="running", reason=None, updated_at=now)
            )
            row = connection.execute(select(executions).where(executions.c.id == execution_id)).mappings().one()
            execution = ExecutionRecord.model_validate(dict(row))
            self._owe(connection, study_id, events(execution, lost))
            return execution

    def end_execution(
        self, execution: ExecutionRecord, state: RunState, *, reason: str | None = None, events: Events = ()
    ) -> None:
        """End an execution, and give its study the same state. Its running trials wait.

        Raises:
            StaleExecutionError: Another execution has begun since.
        """
        now = self.clock.now()
        with self._engine.begin() as connection:
            fence_execution(connection, execution, ended=state)
            left = (attempts.c.execution_id == execution.id, attempts.c.state == "running")
            trials_left = trials.c.id.in_(select(attempts.c.trial_id).where(*left))
            connection.execute(update(trials).where(trials_left, trials.c.state == "running").values(state="waiting"))
            connection.execute(update(attempts).where(*left).values(state="interrupted", ended_at=now))
            connection.execute(
                update(executions)
                .where(executions.c.id == execution.id)
                .values(state=state, reason=reason, ended_at=now)
            )
            connection.execute(
                update(studies)
                .where(studies.c.id == execution.study_id)
                .values(state=state, reason=reason, updated_at=now)
            )
            self._owe(connection, execution.study_id, events)

    def executions(self, study_id: int) -> list[ExecutionRecord]:
        """All executions of a study, oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(executions).where(executions.c.study_id == study_id).order_by(executions.c.number)
            ).mappings()
            return [ExecutionRecord.model_validate(dict(row)) for row in rows]

    def spent_s(self, study_id: int, *, before: ExecutionRecord) -> float:
        """Seconds that the executions of a study before one took, without the pauses between them."""
        with reading(self._engine) as connection:
            return study_time_s(connection, study_id, before=before)

    def trained_macs(self, study_id: int, *, but_stage: int) -> float:
        """Multiply-accumulates of all trainings of a study, except those of one stage."""
        with reading(self._engine) as connection:
            return trained_macs(connection, study_id, but_stage=but_stage)

    def trial_times_s(self, trial_ids: Collection[int]) -> dict[int, float]:
        """Seconds that trials ran, without the pauses between their attempts, by id."""
        with reading(self._engine) as connection:
            return trial_times_s(connection, trial_ids)

    # --- stages ---

    def stage_spent_s(self, stage_id: int) -> float:
        """Seconds that the executions of a study spent on a stage."""
        with reading(self._engine) as connection:
            return stage_time_s(connection, stage_id)

    def stages(self, study_id: int) -> list[StageRecord]:
        """The stages of a study in order."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(stages).where(stages.c.study_id == study_id).order_by(stages.c.position)
            ).mappings()
            return [StageRecord.model_validate(dict(row)) for row in rows]

    def begin_stage(
        self, stage: StageRecord, *, execution: ExecutionRecord | None = None, events: Events = ()
    ) -> StageRecord:
        """Mark a stage as running.

        Raises:
            StaleExecutionError: `execution` is no longer the running one of the study.
        """
        now = self.clock.now()
        with self._engine.begin() as connection:
            fence_execution(connection, execution)
            started = now if stage.started_at is None else stage.started_at
            values = {"state": "running", "reason": None, "started_at": started, "ended_at": None}
            connection.execute(update(stages).where(stages.c.id == stage.id).values(**values))
            self._owe(connection, stage.study_id, events)
            return self._stage(connection, stage.id)

    def end_stage(
        self,
        stage: StageRecord,
        state: RunState,
        *,
        execution: ExecutionRecord | None = None,
        result: Mapping[str, Any] | None = None,
        reason: str | None = None,
        events: Events = (),
    ) -> StageRecord:
        """Write how a stage ended.

        Raises:
            StaleExecutionError: `execution` is no longer the running one of the study.
        """
        with self._engine.begin() as connection:
            fence_execution(connection, execution)
            values: dict[str, Any] = {"state": state, "reason": reason, "ended_at": self.clock.now()}
            if result is not None:
                values["result"] = dict(result)
            connection.execute(update(stages).where(stages.c.id == stage.id).values(**values))
            self._owe(connection, stage.study_id, events)
            return self._stage(connection, stage.id)

    # --- trials ---

    def trials(self, stage_id: int) -> list[TrialRecord]:
        """The trials of a stage by number."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(trials).where(trials.c.stage_id == stage_id).order_by(trials.c.number)
            ).mappings()
            return [TrialRecord.model_validate(dict(row)) for row in rows]

    def begin_trial(
        self,
        stage: StageRecord,
        execution: ExecutionRecord,
        *,
        number: int,
        point: Point,
        sampler_state: Mapping[str, Any],
        seed: int,
        make_events: Callable[[TrialRecord], Events] = lambda _: (),
        ended: EndedTrial | None = None,
    ) -> tuple[TrialRecord, AttemptRecord]:
        """Write a suggestion as a running trial with its first attempt.

        Args:
            stage: Stage of the trial.
            execution: The execution that begins it.
            number: Number of the trial in its stage.
            point: The suggested point.
            sampler_state: The sampler's notes.
            seed: Seed of the trial.
            make_events: Makes the events for MLflow about it.
            ended: An earlier trial that has ended, to be written in the same transaction, as by `end_trial`.

        Raises:
            StaleExecutionError: The execution is no longer the running one of the study.
            StaleAttemptError: The ended attempt is no longer running.
        """
        now = self.clock.now()
        fields: dict[str, Any] = {
            "stage_id": stage.id,
            "number": number,
            "point": dict(point),
            "sampler_state": dict(sampler_state),
            "seed": seed,
            "started_at": now,
        }
        with self._frequent() as connection:
            if is_repeated():
                begun = begun_trial(connection, stage.id, number, execution)
                if begun is not None:
                    return begun
            if connection.dialect.name == "postgresql":  # where the study lock can be lost with its connection
                fence_execution(connection, execution)
            if ended is not None:
                write_end(connection, ended, self.clock.now(), artifact_root=self._artifact_root)
            record = insert_trial(connection, fields)
            attempt = insert_attempt(connection, record.id, execution, number=0, now=now)
            self._owe(connection, stage.study_id, [*(ended.events if ended else ()), *make_events(record)])
        return record, attempt

    def resume_trial(
        self,
        trial: TrialRecord,
        execution: ExecutionRecord,
        *,
        events_if_failed: Callable[[str], Events] = lambda _: (),
    ) -> AttemptRecord | None:
        """Begin a new attempt of a waiting trial; `None` if it fails, because it killed its process too often.

        Args:
            trial: The trial.
            execution: The execution that resumes it.
            events_if_failed: Makes the events for MLflow from the reason, if it fails.

        Raises:
            StaleExecutionError: The execution is no longer the running one of the study.
        """
        now = self.clock.now()
        with self._engine.begin() as connection:
            fence_execution(connection, execution)
            running = (attempts.c.trial_id == trial.id, attempts.c.state == "running")
            connection.execute(update(attempts).where(*running).values(state="lost", ended_at=now))
            rows = connection.execute(
                select(attempts).where(attempts.c.trial_id == trial.id).order_by(attempts.c.number)
            ).all()
            num_lost = count_lost_since_report(connection, trial, rows)
            if num_lost >= MAX_LOST_ATTEMPTS:
                reason = (
                    f"its process died {num_lost} times in a row without finishing an epoch. The system kills "
                    "processes when memory runs out; if it did, lower recipe.batch_size."
                )
                values = {"state": "failed", "reason": reason, "error": "exception", "ended_at": now}
                connection.execute(update(trials).where(trials.c.id == trial.id).values(**values))
                self._owe(connection, execution.study_id, events_if_failed(reason))
                return None
            connection.execute(update(trials).where(trials.c.id == trial.id).values(state="running"))
            attempt = insert_attempt(connection, trial.id, execution, number=len(rows), now=now)
            return attempt.model_copy(update={"num_lost": sum(row.state == "lost" for row in rows)})

    def lose_attempt(self, trial: TrialRecord, attempt: AttemptRecord) -> TrialRecord:
        """Write that the worker of a running attempt died. The trial waits to be resumed.

        Raises:
            StaleAttemptError: The attempt is no longer running.
        """
        with self._engine.begin() as connection:
            end_attempt(connection, attempt, "lost", self.clock.now())
            connection.execute(update(trials).where(trials.c.id == trial.id).values(state="waiting"))
        return trial.model_copy(update={"state": "waiting"})

    def add_report(self, attempt: AttemptRecord, report: EpochReport, *, study_id: int, events: Events = ()) -> None:
        """Write the report of an epoch. A repeated report, after a resume, replaces the row without new events."""
        with self._frequent() as connection:
            if write_report(connection, attempt, report, self.clock.now()):
                self._owe(connection, study_id, events)

    def reports(self, trial_id: int) -> list[EpochReport]:
        """The learning curve of a trial."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(reports.c["values"]).where(reports.c.trial_id == trial_id).order_by(reports.c.epoch)
            ).scalars()
            return [EpochReport.model_validate(values) for values in rows]

    def end_trial(self, ended: EndedTrial, *, study_id: int) -> None:
        """Write how an attempt ended. An interrupted trial waits to be resumed.

        Raises:
            StaleAttemptError: The attempt is no longer running.
        """
        with self._frequent() as connection:
            write_end(connection, ended, self.clock.now(), artifact_root=self._artifact_root)
            self._owe(connection, study_id, ended.events)

    def forget_checkpoints(self, trial_id: int, *, but: Collection[int]) -> None:
        """Delete the rows of a trial's checkpoints, except those of some epochs. The caller deletes the files."""
        with self._engine.begin() as connection:
            gone = (checkpoints.c.trial_id == trial_id, checkpoints.c.epoch.not_in(but))
            connection.execute(delete(checkpoints).where(*gone))

    def checkpoints(self, trial_id: int) -> list[CheckpointRecord]:
        """The checkpoints of a trial, oldest first."""
        with reading(self._engine) as connection:
            return read_checkpoints(connection, trial_id, artifact_root=self._artifact_root)

    # --- tracking ---

    def owe(self, study_id: int, events: Events) -> None:
        """Add events for MLflow."""
        with self._engine.begin() as connection:
            self._owe(connection, study_id, events)

    def outbox(self, study_id: int) -> "StudyOutbox":
        """The events of one study that wait for MLflow."""
        return StudyOutbox(self._engine, study_id)

    # --- the service ---

    def now(self) -> float:
        """The time by the clock of the database, in seconds since 1970, UTC."""
        with reading(self._engine) as connection:
            return read_time(connection)

    def queue(self) -> SubmissionQueue:
        """The submitted studies."""
        return SubmissionQueue(self._engine)

    def owners(self) -> OwnerTable:
        """The owners of studies, with what they used and their weights."""
        return OwnerTable(self._engine)

    def webhooks(self) -> WebhookTable:
        """The requests that announce how studies ended."""
        return WebhookTable(self._engine)

    def tokens(self) -> TokenTable:
        """The access tokens."""
        return TokenTable(self._engine)

    def audit_log(self) -> AuditLog:
        """Who did what."""
        return AuditLog(self._engine)

    # --- long lists ---

    def pages(self) -> StudyPages:
        """Studies and trials in pages."""
        return StudyPages(self._engine)

    # --- scores ---

    def scores(self) -> ScoreTable:
        """The scores of training-free proxies, of all studies."""
        return ScoreTable(self._engine)

    # --- inside a transaction ---

    @contextmanager
    def _frequent(self) -> Iterator[Connection]:
        """A transaction on a connection that is kept for the next one, which is faster than one from the pool."""
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = self._engine.connect()
        try:
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        self._kept.append(connection)

    def _study(self, connection: Connection, condition: Any) -> StudyRecord:
        return StudyRecord.model_validate(dict(connection.execute(select(studies).where(condition)).mappings().one()))

    def _stage(self, connection: Connection, stage_id: int) -> StageRecord:
        row = connection.execute(select(stages).where(stages.c.id == stage_id)).mappings().one()
        return StageRecord.model_validate(dict(row))

    def _owe(self, connection: Connection, study_id: int, events: Events) -> None:
        if events and (self._tracking or self._has_events(connection, study_id)):
            now = self.clock.now()
            _OWE.each(connection, [{"study_id": study_id, "event": event, "created_at": now} for event in events])

    def _has_events(self, connection: Connection, study_id: int) -> bool:
        """Whether the study has events. If so, later events are kept as well, for when tracking is on again."""
        if study_id not in self._known_events:
            found = select(outbox.c.id).where(outbox.c.study_id == study_id).limit(1)
            self._known_events[study_id] = connection.execute(found).first() is not None
        return self._known_events[study_id]


def _insert(connection: Connection, table: Any, **values: Any) -> int:
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    return int(key[0]) if key else 0
