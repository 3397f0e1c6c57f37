"""The store: persistence, refusal of late results, and a schema that equals its migrations."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from orchestrator.settings import SettingsError
from orchestrator.store import database
from orchestrator.store.records import EndedTrial, ExecutionRecord, StageRecord, StudyRecord
from orchestrator.store.repository import MAX_LOST_ATTEMPTS, Store
from orchestrator.store.stale_writes import StaleAttemptError
from orchestrator.store.tables import metadata
from orchestrator.tracking.events import EndRun, event_from_json, event_to_json
from trainers.config import CheckpointRecord, EpochReport, TaskOutcome


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store.open(database_url)
    yield store
    store.close()


@pytest.fixture
def study(store: Store) -> StudyRecord:
    return store.create_study(
        "digits", spec={"seed": 3}, digest="abc", data_digest="d", stage_names=[("screen", "screen")]
    )


@pytest.fixture
def running(store: Store, study: StudyRecord) -> tuple[StageRecord, ExecutionRecord]:
    execution = store.begin_execution(study.id)
    return store.begin_stage(store.stages(study.id)[0]), execution


def report(epoch: int, accuracy: float = 0.5) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=accuracy,
        learning_rate=0.1,
        num_images=10,
        wall_time_s=0.1,
    )


def begin(store: Store, running: tuple[StageRecord, ExecutionRecord], number: int = 0):
    stage, execution = running
    return store.begin_trial(stage, execution, number=number, point={"x": number}, sampler_state={}, seed=number)


def test_the_migrations_make_the_tables_that_the_code_describes(database_url: str) -> None:
    engine = database.open_database(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == database.HEAD


def test_four_processes_may_open_a_fresh_database_at_once(database_url: str) -> None:
    code = "import sys; from orchestrator.store.repository import Store; Store.open(sys.argv[1]).close()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], errors


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    from sqlalchemy import text

    engine = database.open_database(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(RuntimeError, match="9999"):
        database.open_database(database_url)


def test_a_trial_keeps_its_point_reports_outcome_and_checkpoints(store: Store, study: StudyRecord, running) -> None:
    trial, attempt = begin(store, running)
    store.add_report(attempt, report(1, 0.25), study_id=study.id)
    store.add_report(attempt, report(2, 0.5), study_id=study.id)
    record = CheckpointRecord(epoch=2, path=Path("/x/epoch-0002"), sha256="f" * 64, num_bytes=3)
    outcome = TaskOutcome(state="complete", metrics={"val_accuracy": 0.5}, checkpoints=(record,))
    ended = EndedTrial.of(trial, attempt, outcome)
    store.end_trial(ended, study_id=study.id)
    finished = ended.trial
    assert store.trials(trial.stage_id) == [finished]
    assert finished.state == "complete"
    assert finished.metrics == {"val_accuracy": 0.5}
    assert [row.val_accuracy for row in store.reports(trial.id)] == [0.25, 0.5]
    assert store.checkpoints(trial.id) == [record]


def test_paths_of_checkpoints_move_with_the_artifacts(database_url: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    store = Store.open(database_url, artifact_root=old)
    study = store.create_study("s", spec={}, digest="a", data_digest="d", stage_names=[("train", "train")])
    execution = store.begin_execution(study.id)
    trial, attempt = begin(store, (store.begin_stage(store.stages(study.id)[0]), execution))
    own = CheckpointRecord(epoch=1, path=store.study_folder(study) / "train" / "epoch-0001", sha256="a", num_bytes=3)
    elsewhere = CheckpointRecord(epoch=2, path=Path("/elsewhere/epoch-0002"), sha256="b", num_bytes=3)
    outcome = TaskOutcome(state="complete", checkpoints=(own, elsewhere))
    store.end_trial(EndedTrial.of(trial, attempt, outcome), study_id=study.id)
    assert store.checkpoints(trial.id) == [own, elsewhere]
    store.close()
    moved = Store.open(database_url, artifact_root=new)
    assert [record.path for record in moved.checkpoints(trial.id)] == [
        new / "studies" / f"s-{study.uid}" / "train" / "epoch-0001",
        elsewhere.path,
    ]
    moved.close()


def test_the_migration_to_relative_paths_keeps_paths_outside_the_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    engine = database.connect(url)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    inside, outside = "/old/artifacts/studies/s-u/promote/champion", "/old/artifacts/studies/s-other/champion"
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.exec_driver_sql(
            "INSERT INTO studies (id, uid, name, spec, spec_digest, data_digest, state, owner, created_at, updated_at) "
            "VALUES (1, 'u', 's', '{}', 'a', 'b', 'complete', 'me', 1, 2)"
        )
        for position, folder in enumerate((inside, outside)):
            connection.exec_driver_sql(
                "INSERT INTO stages (study_id, position, name, kind, state, result) "
                "VALUES (1, ?, ?, 'promote', 'complete', ?)",
                (position, f"promote{position}", json.dumps({"folder": folder, "test_loss": math.inf})),
            )
    engine.dispose()
    store = Store.open(url)
    results = [stage.result for stage in store.stages(1)]
    assert results == [
        {"folder": "promote/champion", "test_loss": math.inf},
        {"folder": outside, "test_loss": math.inf},
    ]
    store.close()


def test_an_epoch_that_is_repeated_replaces_its_report(store: Store, study: StudyRecord, running) -> None:
    trial, attempt = begin(store, running)
    store.add_report(attempt, report(1, 0.25), study_id=study.id)
    store.add_report(attempt, report(1, 0.75), study_id=study.id)
    assert [row.val_accuracy for row in store.reports(trial.id)] == [0.75]


def test_after_a_killed_driver_nothing_stays_running(store: Store, study: StudyRecord, running) -> None:
    trial, _ = begin(store, running)
    store.begin_execution(study.id)
    assert [row.state for row in store.trials(trial.stage_id)] == ["waiting"]
    assert [row.state for row in store.executions(study.id)] == ["lost", "running"]
    assert store.stages(study.id)[0].state == "interrupted"


def test_the_late_result_of_a_lost_attempt_is_refused(store: Store, study: StudyRecord, running) -> None:
    trial, lost = begin(store, running)
    execution = store.begin_execution(study.id)
    attempt = store.resume_trial(trial, execution)
    assert attempt is not None
    with pytest.raises(StaleAttemptError):
        store.end_trial(EndedTrial.of(trial, lost, TaskOutcome(state="complete")), study_id=study.id)
    with pytest.raises(StaleAttemptError):
        store.add_report(lost, report(1), study_id=study.id)
    store.end_trial(EndedTrial.of(trial, attempt, TaskOutcome(state="complete")), study_id=study.id)
    assert store.trials(trial.stage_id)[0].state == "complete"


def test_an_interrupted_trial_waits_to_be_resumed(store: Store, study: StudyRecord, running) -> None:
    trial, attempt = begin(store, running)
    store.end_trial(EndedTrial.of(trial, attempt, TaskOutcome(state="interrupted")), study_id=study.id)
    assert [row.state for row in store.trials(trial.stage_id)] == ["waiting"]


def test_a_trial_that_keeps_killing_its_process_fails_with_a_reason(store: Store, study: StudyRecord, running) -> None:
    trial, _ = begin(store, running)
    for _ in range(MAX_LOST_ATTEMPTS - 1):
        assert store.resume_trial(trial, store.begin_execution(study.id)) is not None
    assert store.resume_trial(trial, store.begin_execution(study.id)) is None
    failed = store.trials(trial.stage_id)[0]
    assert failed.state == "failed"
    assert "died" in (failed.reason or "")


def test_lost_attempts_that_made_progress_do_not_count_against_a_trial(
    store: Store, study: StudyRecord, running
) -> None:
    trial, attempt = begin(store, running)
    for epoch in range(1, 2 * MAX_LOST_ATTEMPTS):
        store.add_report(attempt, report(epoch), study_id=study.id)
        resumed = store.resume_trial(trial, store.begin_execution(study.id))
        assert resumed is not None
        attempt = resumed


def test_a_trial_that_cannot_be_begun_leaves_no_row_and_no_connection_behind(store: Store, running) -> None:
    def fail(_: object) -> list[str]:
        raise KeyError("no events")

    stage, execution = running
    begin(store, running, number=0)
    with pytest.raises(KeyError):
        store.begin_trial(stage, execution, number=1, point={}, sampler_state={}, seed=1, make_events=fail)
    begin(store, running, number=2)
    assert [trial.number for trial in store.trials(stage.id)] == [0, 2]
    assert store._engine.pool.checkedout() == 1  # kept for the next trial
    store.close()
    assert store._engine.pool.checkedout() == 0


def test_deleting_a_study_leaves_no_row_behind(store: Store, study: StudyRecord, running) -> None:
    trial, attempt = begin(store, running)
    store.add_report(attempt, report(1), study_id=study.id)
    store.owe(study.id, [event_to_json(EndRun(key="k", status="FINISHED", end_time_ms=1))])
    store.delete_study(study.id)
    assert store.list_studies() == []
    assert store.trials(trial.stage_id) == []
    assert store.reports(trial.id) == []
    assert store.outbox(study.id).count_owed() == 0


def test_what_is_owed_is_in_order_and_only_of_its_study(store: Store, study: StudyRecord) -> None:
    other = store.create_study("other", spec={"seed": 1}, digest="d", data_digest="d", stage_names=[])
    events = [EndRun(key=f"run{number}", status="FINISHED", end_time_ms=number) for number in range(3)]
    store.owe(study.id, [event_to_json(event) for event in events])
    store.owe(other.id, [event_to_json(events[0])])
    owed = store.outbox(study.id)
    assert [event_from_json(text) for _, text in owed.owed(10)] == events
    ids = [number for number, _ in owed.owed(10)]
    owed.settle(ids[:1])
    owed.reject(ids[1], "never")
    assert [event_from_json(text) for _, text in owed.owed(10)] == events[2:]
    assert (owed.count_owed(), owed.count_rejected()) == (1, 1)
    assert store.outbox(other.id).count_owed() == 1


def test_without_tracking_nothing_is_owed(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/quiet.db", tracking=False)
    study = store.create_study("digits", spec={"seed": 3}, digest="abc", data_digest="d", stage_names=[])
    store.owe(study.id, [event_to_json(EndRun(key="k", status="FINISHED", end_time_ms=1))])
    assert store.outbox(study.id).count_owed() == 0
    store.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("no url", "^VITSEARCH_DATABASE_URL: .*must be an SQLAlchemy URL"),
        ("nonsense:///x", "^VITSEARCH_DATABASE_URL: .*nonsense"),
        ("sqlite:////no/such/folder/x.db", "^the database sqlite:////no/such/folder/x.db must .*unable to open"),
    ],
)
def test_a_database_url_that_cannot_be_used_is_named(url: str, found: str) -> None:
    with pytest.raises(SettingsError, match=found):
        Store.open(url)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("this is a shopping list, and a long one at that" * 100)
    with pytest.raises(SettingsError, match="not a database"):
        Store.open(f"sqlite:///{file}")
