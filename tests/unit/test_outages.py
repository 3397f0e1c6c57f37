"""Calls to the store during a database outage: nothing is written twice, and no call waits forever."""

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from orchestrator.store import retrying
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.records import EndedTrial, ExecutionRecord, StageRecord, StudyRecord
from orchestrator.store.repository import Store
from orchestrator.store.stale_writes import StaleAttemptError, StaleExecutionError
from orchestrator.tracking.events import EndRun, event_to_json
from tests.postgres import PostgresServer
from trainers.config import TaskOutcome

DONE = TaskOutcome(state="complete", metrics={"x": 1.0})


class Cut:
    """Cuts connections: the server commits, and the answer gets lost."""

    def __init__(self, store: Store) -> None:
        self.dialect = store._engine.dialect
        self.commit = self.dialect.do_commit
        self.count = 0

    def __call__(self, times: int = 1) -> None:
        """The next so many commits."""
        self.count = times
        self.dialect.do_commit = self._commit_and_cut  # type: ignore[method-assign]

    def _commit_and_cut(self, connection: Any) -> None:
        import psycopg

        self.commit(connection)
        if self.count > 0:
            self.count -= 1
            connection.dbapi_connection.close()
            raise psycopg.OperationalError("the connection is closed")


@pytest.fixture
def store(postgres: PostgresServer) -> Iterator[Store]:
    store = Store.open(postgres.new_database(), wait_s=5)
    yield store
    store.close()


@pytest.fixture
def cut(store: Store) -> Cut:
    return Cut(store)


def make_study(store: Store) -> StudyRecord:
    return store.create_study("s", spec={}, digest="d", data_digest="d", stage_names=[("train", "train")])


def begin_stage(store: Store, study: StudyRecord) -> tuple[StageRecord, ExecutionRecord]:
    execution = store.begin_execution(study.id)
    return store.begin_stage(store.stages(study.id)[0], execution=execution), execution


def begin(store: Store, stage: StageRecord, execution: ExecutionRecord, number: int, **given: Any) -> Any:
    return store.begin_trial(stage, execution, number=number, point={}, sampler_state={}, seed=1, **given)


def states(store: Store, table: str) -> list[str]:
    with store._engine.connect() as connection:
        return list(connection.execute(text(f"SELECT state FROM {table} ORDER BY id")).scalars())


def test_what_was_committed_when_the_connection_died_is_not_written_twice(store: Store, cut: Cut) -> None:
    cut()
    study = make_study(store)
    assert store.list_studies() == [study]
    cut()
    stage, execution = begin_stage(store, study)
    assert [one.state for one in store.executions(study.id)] == ["lost", "running"]
    cut(times=2)
    trial, attempt = begin(store, stage, execution, 0)
    assert states(store, "attempts") == ["running"]
    cut()
    ended = EndedTrial.of(trial, attempt, DONE)
    store.end_trial(ended, study_id=study.id)
    assert store.trials(stage.id) == [ended.trial]
    with pytest.raises(StaleAttemptError):  # a second result, not a repeated one
        store.end_trial(ended, study_id=study.id)
    first, attempt = begin(store, stage, execution, 1)
    cut()
    second, _ = begin(store, stage, execution, 2, ended=EndedTrial.of(first, attempt, DONE))
    assert [one.state for one in store.trials(stage.id)] == ["complete", "complete", "running"]
    store.end_execution(execution, "interrupted")
    execution = store.begin_execution(study.id)
    cut()
    attempt = store.resume_trial(second, execution)
    assert states(store, "attempts").count("running") == 1
    cut()
    assert attempt is not None
    assert store.lose_attempt(second, attempt).state == "waiting"
    cut()
    store.end_execution(execution, "complete")
    assert "running" not in states(store, "attempts") + states(store, "trials") + states(store, "executions")


def test_an_execution_that_was_taken_over_can_write_nothing(database_url: str) -> None:
    store = Store.open(database_url)
    study = make_study(store)
    stage, old = begin_stage(store, study)
    trial, attempt = begin(store, stage, old, 0)
    new = store.begin_execution(study.id)
    told = [event_to_json(EndRun(key="k", status="KILLED", end_time_ms=1))]
    late = (
        lambda: store.end_trial(EndedTrial.of(trial, attempt, DONE, tuple(told)), study_id=study.id),
        lambda: store.resume_trial(trial, old),
        lambda: store.begin_stage(stage, execution=old, events=told),
        lambda: store.end_stage(stage, "complete", execution=old, events=told),
        lambda: store.end_execution(old, "complete", events=told),
    )
    for write in late:
        with pytest.raises(StaleAttemptError):
            write()
    if database_url.startswith("postgresql"):
        with pytest.raises(StaleExecutionError, match="another process"):
            begin(store, stage, old, 1)
    assert [one.state for one in store.executions(study.id)] == ["lost", "running"]
    assert [one.state for one in store.trials(stage.id)] == ["waiting"]
    assert store.outbox(study.id).count_owed() == 0
    assert store.resume_trial(trial, new) is not None
    store.close()


class Clock:
    """Stands in for the module `time`: sleeping takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_database_that_stays_away_is_waited_for_once(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not postgres.can_be_stopped:
        pytest.skip("the given PostgreSQL server is not ours to be stopped")
    store = Store.open(postgres.new_database(), wait_s=0.5)
    study = make_study(store)
    clock = Clock()
    monkeypatch.setattr(retrying, "time", clock)
    postgres.stop()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):  # the second call does not wait
                with pytest.raises(DatabaseUnavailableError, match=r"must answer, but did not for 0\.5 s"):
                    store.list_studies()
                assert clock.now == pytest.approx(0.5)
    finally:
        postgres.start()
    assert sum("retrying for up to 0.5 s" in record.message for record in caplog.records) == 1
    assert store.list_studies() == [study]
    store.close()


def test_a_full_disk_under_sqlite_is_not_waited_for(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/x.db")

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    event.listen(store._engine, "before_cursor_execute", full)
    with pytest.raises(DatabaseUnavailableError) as error:
        store.list_studies()
    store.close()
    assert "database or disk is full" in str(error.value)
    assert "run the same command again" in str(error.value)
