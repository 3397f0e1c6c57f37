"""Backups of an installation, reading without write access, and damaged or emptied databases."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from orchestrator.settings import Settings, SettingsError
from orchestrator.store import database
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.study.access import list_studies, num_folders_without_rows, study_folder
from orchestrator.study.backup import BackupError, make_backup, restore_backup
from orchestrator.study.lock import hold_study, is_held
from orchestrator.tracking.login import prepare_login
from tests.object_store import S3Server
from tests.postgres import PostgresServer
from tests.tiny import CommandLine
from trainers.storage.addresses import local_place
from trainers.storage.artifacts import artifacts_at
from trainers.storage.object_store import ObjectStore, ObjectStoreError, object_store


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
    with pytest.raises(BackupError, match="/ exists"):
        make_backup(home, Path("/"))


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


def test_users_of_mlflow_and_their_keys_are_copied_and_stay_private(home: Settings, tmp_path: Path) -> None:
    key = prepare_login(home.login_folder).environment["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    users = sqlite3.connect(home.login_folder / "users.db")
    users.execute("PRAGMA journal_mode = WAL")
    users.execute("CREATE TABLE users (name TEXT)")
    users.execute("INSERT INTO users VALUES ('ann')")
    users.commit()  # the row is in the log of a database that is open
    make_backup(home, tmp_path / "backup")
    users.close()
    new = Settings(home=tmp_path / "new")
    restore_backup(new, tmp_path / "backup")
    with sqlite3.connect(new.login_folder / "users.db") as restored:
        assert restored.execute("SELECT name FROM users").fetchall() == [("ann",)]
    assert prepare_login(new.login_folder).environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] == key
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700
    for folder in (tmp_path / "backup" / "mlflow-auth", new.login_folder):
        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700, 0o600}
    (tmp_path / "third").mkdir()
    third = Settings(home=tmp_path / "third")
    third.login_folder.mkdir()
    with pytest.raises(BackupError, match="mlflow-auth is in use"):
        restore_backup(third, tmp_path / "backup")


@pytest.fixture
def in_store(home: Settings, s3: S3Server, tmp_path: Path) -> Settings:
    """The same installation with its artifacts in an object store."""
    settings = Settings(home=home.home, artifact_root=s3.root, cache_folder=tmp_path / "cache")  # type: ignore[arg-type]
    artifacts_at(settings.artifact_root).commit(
        settings.artifact_root / "studies" / "digits-1" / "champion",
        {"weights": b"w" * 70_000, "manifest.json": b"{}"},
        manifest="manifest.json",
    )
    shutil.rmtree(home.artifact_root / "studies")
    return settings


def test_objects_are_copied_and_restored_into_another_place_of_a_store(
    in_store: Settings, s3: S3Server, tmp_path: Path
) -> None:
    assert make_backup(in_store, tmp_path / "backup").left_out == ("MLflow: there is no database yet",)
    new = Settings(home=tmp_path / "new", artifact_root=f"{s3.root}-new", cache_folder=tmp_path / "cache")  # type: ignore[arg-type]
    restore_backup(new, tmp_path / "backup")
    there, here = s3.root.partition("://")[2], f"{s3.root}-new".partition("://")[2]
    store = object_store("s3")
    assert store.read(f"{here}/studies/digits-1/champion/weights") == b"w" * 70_000
    names = [{key.removeprefix(place) for key in store.find(place)} for place in (there, here)]
    assert names[0] == names[1]
    third = Settings(home=tmp_path / "third", artifact_root=f"{s3.root}-new", cache_folder=tmp_path / "cache")  # type: ignore[arg-type]
    with pytest.raises(BackupError, match=rf"{s3.root}-new is in use"):
        restore_backup(third, tmp_path / "backup")


def test_objects_that_are_copied_otherwise_can_be_left_out(in_store: Settings, s3: S3Server, tmp_path: Path) -> None:
    made = make_backup(in_store, tmp_path / "backup", with_objects=False)
    assert made.left_out[0] == f"checkpoints and champions: they are in {s3.root}. Copy them with the store's own tools"
    assert not (tmp_path / "backup" / "objects").exists()
    missing = restore_backup(Settings(home=tmp_path / "folder"), tmp_path / "backup")
    assert missing is not None
    assert f"They were in {s3.root}. Set VITSEARCH_ARTIFACT_ROOT" in missing


def test_a_backup_without_objects_is_restored_beside_them(in_store: Settings, s3: S3Server, tmp_path: Path) -> None:
    make_backup(in_store, tmp_path / "backup", with_objects=False)
    before = object_store("s3").find(s3.root.partition("://")[2])
    new = in_store.model_copy(
        update={
            name: getattr(Settings(home=tmp_path / "new"), name) for name in ("home", "database_url", "tracking_uri")
        }
    )
    assert restore_backup(new, tmp_path / "backup") is None
    assert [row["study"] for row in list_studies(new)] == ["digits"]
    assert object_store("s3").find(s3.root.partition("://")[2]) == before


def test_the_command_tells_how_to_restore_without_objects(
    in_store: Settings, s3: S3Server, command_line: CommandLine, tmp_path: Path
) -> None:
    settings = {"VITSEARCH_ARTIFACT_ROOT": s3.root, "VITSEARCH_CACHE_FOLDER": str(tmp_path / "cache")}
    made = command_line("backup", "--no-objects", tmp_path / "backup", **settings)
    assert f"VITSEARCH_HOME=NEW VITSEARCH_ARTIFACT_ROOT={s3.root} vitsearch restore" in made.err
    restored = command_line("restore", tmp_path / "backup", VITSEARCH_HOME=str(tmp_path / "new"))
    assert restored.status == 0
    assert f"not in the backup, which was made with --no-objects. They were in {s3.root}" in restored.err


def test_a_failed_restore_names_everything_to_remove_before_the_next(
    in_store: Settings, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backup(in_store, tmp_path / "backup")
    new = Settings(home=tmp_path / "new", artifact_root=f"{s3.root}-new", cache_folder=tmp_path / "cache")  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        upload, uploaded = ObjectStore.upload, list[str]()

        def fail_later(store: ObjectStore, file: Path, key: str) -> None:
            if uploaded:
                raise ObjectStoreError(5, "the connection was reset", f"s3://{key}")
            uploaded.append(key)
            upload(store, file, key)

        patch.setattr(ObjectStore, "upload", fail_later)
        with pytest.raises(BackupError, match="connection was reset") as caught:
            restore_backup(new, tmp_path / "backup")
    message = str(caught.value)
    assert "same command again" not in message
    assert f"{new.home / 'artifacts'}, everything below {s3.root}-new), or set VITSEARCH_HOME" in message
    with pytest.raises(BackupError, match="is in use"):
        restore_backup(new, tmp_path / "backup")
    shutil.rmtree(new.home / "artifacts")
    object_store("s3").remove_below(f"{s3.root}-new".partition("://")[2])
    assert restore_backup(new, tmp_path / "backup") is None


def test_an_unreachable_store_leaves_no_backup(
    in_store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_args: object, **_kwargs: object) -> None:
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", refused)
    s3fs.S3FileSystem.clear_instance_cache()  # existing ones have the method already
    with pytest.raises(BackupError, match=r"connection refused.* Nothing was kept in .*backup"):
        make_backup(in_store, tmp_path / "backup")
    s3fs.S3FileSystem.clear_instance_cache()  # those of the threads keep the method
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "home"]


def test_a_store_without_objects_is_reported(in_store: Settings, s3: S3Server, tmp_path: Path) -> None:
    object_store("s3").remove_below(s3.root.partition("://")[2])
    left_out = make_backup(in_store, tmp_path / "backup").left_out
    assert f"checkpoints and champions: there are no objects in {s3.root}" in left_out


def test_an_object_that_leads_out_of_the_folder_is_not_written(
    in_store: Settings, s3: S3Server, tmp_path: Path
) -> None:
    for rest in ("studies/../../../escaped", f"{tmp_path}/escaped"):
        key = f"{s3.root.partition('://')[2]}/{rest}"
        object_store("s3").write(key, b"x")
        with pytest.raises(BackupError, match=r"not the name of a file below that folder.*remove it from the store"):
            make_backup(in_store, tmp_path / "backup")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "home"]
        object_store("s3").remove([key])


def test_artifacts_return_to_the_kind_of_place_they_came_from(home: Settings, s3: S3Server, tmp_path: Path) -> None:
    make_backup(home, tmp_path / "from-folder")
    in_store = Settings(home=tmp_path / "new", artifact_root=s3.root, cache_folder=tmp_path / "cache")  # type: ignore[arg-type]
    with pytest.raises(BackupError, match="comes from a folder"):
        restore_backup(in_store, tmp_path / "from-folder")
    place = local_place(s3.root, tmp_path / "cache")
    artifacts_at(place).commit(place / "studies" / "one", {"manifest.json": b"{}"}, manifest="manifest.json")
    shutil.rmtree(home.artifact_root / "studies")
    make_backup(home.model_copy(update={"artifact_root": in_store.artifact_root}), tmp_path / "from-store")
    with pytest.raises(BackupError, match="objects of an object store"):
        restore_backup(Settings(home=tmp_path / "new"), tmp_path / "from-store")
    assert not (tmp_path / "new").exists()


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
