"""Backups of an installation, reading without write access, and damaged or emptied databases."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.settings import Settings, SettingsError
from orchestrator.store import database
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.study.access import list_studies, num_folders_without_rows, study_folder
from orchestrator.study.backup import BackupError, make_backup, restore_backup
from orchestrator.study.lock import hold_study, is_held
from tests.postgres import PostgresServer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """An installation with one study, which has a file with two names."""
    for name in ("VITSEARCH_DATABASE_URL", "MLFLOW_TRACKING_URI", "VITSEARCH_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    study = store.create_study("digits", spec={}, digest="a", data_digest="b", stage_names=[("train", "train")])
    folder = study_folder(settings, study)
    (settings.mlflow_root / "digits").mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * 1000)
    os.link(folder / "weights", settings.mlflow_root / "digits" / "weights")
    yield settings
    store.close()


def test_a_backup_that_is_restored_has_the_studies_and_files(home: Settings, tmp_path: Path) -> None:
    made = make_backup(home, tmp_path / "backup")  # while the database is open
    assert made.left_out == ("MLflow: there is no database yet",)
    new = Settings(home=tmp_path / "new")
    restore_backup(new, tmp_path / "backup")
    assert [row["study"] for row in list_studies(new)] == ["digits"]
    (weights,) = (new.artifact_root / "studies").rglob("weights")
    assert weights.read_bytes() == b"x" * 1000
    assert weights.samefile(new.mlflow_root / "digits" / "weights"), "a file with two names is copied once"
    assert num_folders_without_rows(new) == 0


def test_a_backup_overwrites_nothing_and_is_restored_over_nothing(home: Settings, tmp_path: Path) -> None:
    make_backup(home, tmp_path / "backup")
    with pytest.raises(BackupError, match="needs a new folder"):
        make_backup(home, tmp_path / "backup")
    with pytest.raises(BackupError, match="empty installation"):
        restore_backup(home, tmp_path / "backup")
    with pytest.raises(BackupError, match=r"has no backup\.json"):
        restore_backup(Settings(home=tmp_path / "new"), tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_backup_removes_no_folder_and_does_not_copy_itself(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "backup.part").mkdir()
    (tmp_path / "backup.part" / "mine").touch()
    with pytest.raises(BackupError, match=r"backup\.part exists"):
        make_backup(home, tmp_path / "backup")
    assert (tmp_path / "backup.part" / "mine").exists()
    with pytest.raises(BackupError, match="outside of what it copies"):
        make_backup(home, home.artifact_root / "backups" / "today")
    make_backup(home, home.home / "backup")


def test_a_backup_does_not_replace_another_database_of_mlflow(home: Settings, tmp_path: Path) -> None:
    (home.home / "mlflow.db").touch()
    make_backup(home, tmp_path / "backup")
    new = Settings(home=tmp_path / "new")
    new.home.mkdir()
    (new.home / "mlflow.db").write_bytes(b"runs of others")
    with pytest.raises(BackupError, match=r"mlflow\.db is in use"):
        restore_backup(new, tmp_path / "backup")
    assert [path.name for path in new.home.iterdir()] == ["mlflow.db"]
    assert (new.home / "mlflow.db").read_bytes() == b"runs of others"


def test_a_database_that_others_may_write_is_never_copied_as_a_file(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a copy could be torn; only a database that is at rest can be copied so."""

    def no_space(*_args: object, **_kwargs: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("orchestrator.store.snapshots.sqlite3.connect", no_space)
    with pytest.raises(BackupError, match="disk is full"):
        make_backup(home, tmp_path / "backup")


def test_a_failed_backup_leaves_no_folder(home: Settings, tmp_path: Path) -> None:
    Path(f"{home.home}/mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(BackupError, match=r"mlflow\.db must be intact"):
        make_backup(home, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_tracking_server_is_named_as_left_out(home: Settings, tmp_path: Path) -> None:
    settings = home.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    assert "tracking server" in make_backup(settings, tmp_path / "backup").left_out[0]


def test_an_sqlite_backup_is_not_restored_into_postgresql(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backup(home, tmp_path / "backup")
    monkeypatch.setattr("orchestrator.study.backup.find_database", lambda _url: None)
    settings = Settings(home=tmp_path / "new", database_url="postgresql://localhost/x")
    with pytest.raises(BackupError, match="comes from SQLite"):
        restore_backup(settings, tmp_path / "backup")
    assert not settings.home.exists(), "with the right address, it can be tried again"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_home_without_write_access_is_read_from_a_copy(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(home.home)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    assert [row["study"] for row in list_studies(home)] == ["digits"]
    store = Store.find(home.database_url)
    assert store is not None
    with pytest.raises(DatabaseUnavailableError, match="readonly"):
        store.delete_study(1)
    store.close()
    assert contents(home.home) == before


def test_a_lock_is_seen_without_write_access(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_study("digits", home), monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
        assert is_held("digits", home)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    assert not is_held("digits", home)


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_damaged_database_is_called_damaged(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "vitsearch.db"
    if content is None:
        database.open_database(f"sqlite:///{file}").dispose()
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray(file.read_bytes())
        content[100:8192] = b"\xff" * 8092
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"is damaged: .*docs/backup\.md") as caught:
        Store.open(f"sqlite:///{file}")
    assert "VITSEARCH_DATABASE_URL" not in str(caught.value)


def test_files_of_studies_that_an_emptied_database_does_not_know_are_counted(home: Settings) -> None:
    assert num_folders_without_rows(home) == 0
    for file in home.home.glob("vitsearch.db*"):
        file.unlink()
    assert num_folders_without_rows(home) == 1


@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="pg_dump is not installed (PostgreSQL's clients)")
def test_a_postgresql_database_is_copied_while_it_is_in_use_and_restored_into_an_empty_one(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    settings = Settings(home=tmp_path / "home", database_url=postgres.new_database())
    settings.home.mkdir()
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    study = store.create_study("digits", spec={"ä": [1]}, digest="a", data_digest="b", stage_names=[("train", "train")])
    execution = store.begin_execution(study.id)
    (stage,) = store.stages(study.id)
    store.begin_trial(stage, execution, number=0, point={"x": 1.5}, sampler_state={}, seed=2**62)
    make_backup(settings, tmp_path / "backup")
    store.end_execution(execution, "complete")  # after the copy
    new = Settings(home=tmp_path / "new", database_url=postgres.new_database())
    restore_backup(new, tmp_path / "backup")
    restored = Store.open(new.database_url, artifact_root=new.artifact_root)
    (found,) = restored.list_studies()
    assert found.model_copy(update={"state": "running"}) == study.model_copy(
        update={"state": "running", "updated_at": found.updated_at}
    )
    assert restored.executions(found.id) == [execution]
    assert [(one.point, one.seed) for one in restored.trials(stage.id)] == [({"x": 1.5}, 2**62)]
    again = restored.begin_execution(found.id)
    assert again.id == execution.id + 1, "the counters of rows are restored too"
    with pytest.raises(BackupError, match="empty"):
        restore_backup(Settings(home=tmp_path / "third", database_url=new.database_url), tmp_path / "backup")
    for one in (store, restored):
        one.close()
