"""Backups of an installation: its databases, and the files of its studies and models."""

import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from orchestrator.settings import Settings
from orchestrator.store.database import find_database, sqlite_file
from orchestrator.store.snapshots import SnapshotError, copy_sqlite, dump_postgresql, load_postgresql
from orchestrator.tracking.login import USERS
from orchestrator.tracking.names import is_http
from trainers.storage.addresses import address_of
from trainers.storage.object_store import ObjectStoreError
from trainers.storage.whole_copies import has_objects, load_objects, save_objects

MANIFEST = "backup.json"
_FORMAT = 1
_DATABASES = {"vitsearch": "vitsearch", "mlflow": "MLflow"}
"""File names of the databases in a backup, and what they contain."""
_FOLDERS = ("artifacts", "proxies")
_LOGIN = "mlflow-auth"
_OBJECTS = "objects"
"""What an object store holds; each file has the rest of its object's key as name."""


class BackupError(RuntimeError):
    """A backup cannot be made or restored; the message says why, and what to do."""


class Backup(NamedTuple):
    """What was copied."""

    num_bytes: int
    left_out: tuple[str, ...]
    """What is not part of the backup, for people."""


def make_backup(settings: Settings, target: Path, *, with_objects: bool = True) -> Backup:
    """Copy an installation into a new folder. Studies may run meanwhile: each database is copied as of one moment.

    Args:
        settings: Settings of this installation.
        target: The folder to make. Only this user may read it, since it contains users, tokens and secrets.
        with_objects: Whether to copy what an object store holds.

    Raises:
        BackupError: The folder exists or lies in a folder that is copied, or something cannot be copied. An incomplete
            folder is removed.
    """
    part = target.with_name(f"{target.name}.part")
    for folder in (target, part):
        if folder.exists():
            raise BackupError(f"a backup needs a new folder, but {folder} exists. Choose another name.")
    for place in _places(settings):
        if target.resolve().is_relative_to(place.resolve()):
            raise BackupError(f"a backup must lie outside of what it copies, but {target} lies in {place}. Move it.")
    left_out = []
    address = address_of(settings.artifact_root)
    if address is not None and not with_objects:
        left_out.append(f"checkpoints and champions: they are in {address}. Copy them with the store's own tools")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir(mode=0o700)
        for name, url in _urls(settings).items():
            problem = _save_database(url, part, name)
            if problem is not None:
                left_out.append(f"{_DATABASES[name]}: {problem}")
        for name, folder in zip(_FOLDERS, _places(settings), strict=True):
            if folder.is_dir():
                copy = _LinkedCopy()
                shutil.copytree(folder, part / name, symlinks=True, copy_function=copy)
        _copy_login(settings.login_folder, part / _LOGIN)
        if address is not None and with_objects and not save_objects(settings.artifact_root, part / _OBJECTS):
            left_out.append(f"checkpoints and champions: there are no objects in {address}")
        about = {"format": _FORMAT, "vitsearch": version("vitsearch"), "made_at": time.time(), "left_out": left_out}
        (part / MANIFEST).write_text(json.dumps(about, indent=2), encoding="utf-8")
        part.replace(target)
    except (SnapshotError, ObjectStoreError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BackupError(f"{error} Nothing was kept in {target}.") from error
    except (OSError, shutil.Error) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BackupError(f"{target} must have space for all files, and all must be readable, but: {error}.") from error
    return Backup(sum(file.stat().st_size for file in target.rglob("*") if file.is_file()), tuple(left_out))


def restore_backup(settings: Settings, source: Path) -> None:
    """Fill a new home, and empty databases, from a backup.

    Args:
        settings: Settings of the new installation.
        source: A folder that `make_backup` made.

    Raises:
        BackupError: It is no backup, or one of another version, or the installation is not empty.
    """
    try:
        about = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        known = about["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BackupError(f"{source} must be a folder that `vitsearch backup` made, but has no {MANIFEST}.") from None
    if known != _FORMAT:
        raise BackupError(
            f"{source} must have the format {_FORMAT}, but has {known!r}. Use the vitsearch that made it."
        )
    _require_empty(settings)
    for name, url in _urls(settings).items():
        _require_same_kind(url, source, name)
    _require_same_place(settings, source)
    try:
        for name, folder in zip(_FOLDERS, _places(settings), strict=True):
            if (source / name).is_dir():
                copy = _LinkedCopy()
                shutil.copytree(source / name, folder, symlinks=True, dirs_exist_ok=True, copy_function=copy)
        _copy_login(source / _LOGIN, settings.login_folder)
        if (source / _OBJECTS).is_dir():
            load_objects(source / _OBJECTS, settings.artifact_root)
        for name, url in _urls(settings).items():
            _load_database(url, source, name)
    except (SnapshotError, ObjectStoreError) as error:
        raise BackupError(str(error)) from error
    except (OSError, shutil.Error) as error:
        raise BackupError(f"{settings.home} must be written, but: {error}. Remove it, then try again.") from error


class _LinkedCopy:
    """Copies files; those that are names of one file (hard links) are so in the copy, too."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], str] = {}

    def __call__(self, source: str, target: str) -> str:
        try:
            status = os.stat(source)  # noqa: PTH116 - shutil passes texts
            place = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and place in self._copies:
                os.link(self._copies[place], target)
                return target
            shutil.copy2(source, target)
        except FileNotFoundError:  # a running study has removed an old checkpoint
            return target
        self._copies[place] = target
        return target


def _urls(settings: Settings) -> dict[str, str]:
    return {"vitsearch": settings.database_url, "mlflow": settings.tracking_uri}


def _places(settings: Settings) -> tuple[Path, Path]:
    return settings.local_root, settings.formula_folder


def _copy_login(source: Path, target: Path) -> None:
    """Copy the users, keys and settings of MLflow's authentication, if there are any; only this user may read them."""
    if not source.is_dir():
        return
    target.mkdir(mode=0o700, parents=True)
    for file in source.iterdir():
        if file.name == USERS:
            copy_sqlite(file, target / USERS)
        elif not file.name.startswith(USERS):  # what SQLite keeps beside its file
            shutil.copyfile(file, target / file.name)
    for file in target.iterdir():
        file.chmod(0o600)


def _save_database(url: str, folder: Path, name: str) -> str | None:
    """Copy a database; returns why it is left out."""
    if is_http(url):
        return "its data are on a tracking server. Back up that server's database and files"
    if not url.startswith("sqlite"):
        dump_postgresql(url, folder / f"{name}.dump")
        return None
    file = sqlite_file(url)
    if file is None or not file.exists():
        return "there is no database yet"
    copy_sqlite(file, folder / f"{name}.db")
    return None


def _saved_database(folder: Path, name: str) -> Path:
    """The file of a database in a backup, which may be missing."""
    dump = folder / f"{name}.dump"
    return dump if dump.exists() else folder / f"{name}.db"


def _require_same_kind(url: str, folder: Path, name: str) -> None:
    saved = _saved_database(folder, name)
    is_dump = saved.suffix == ".dump"
    if is_http(url) or not saved.exists() or url.startswith("sqlite") != is_dump:
        return
    found, needed = ("PostgreSQL", "SQLite") if is_dump else ("SQLite", "PostgreSQL")
    raise BackupError(
        f"{saved} comes from {found} and must be restored there, but the settings name {needed}. Change the address "
        "of the database."
    )


def _require_same_place(settings: Settings, source: Path) -> None:
    """Attempts at trainings are counted in other ways in folders than in object stores, so none replaces the other."""
    in_store = address_of(settings.artifact_root) is not None
    from_store, from_folder = (source / _OBJECTS).is_dir(), (source / "artifacts" / "studies").is_dir()
    if in_store and from_folder and not from_store:
        raise BackupError(
            f"{source} comes from a folder and must be restored into one, but VITSEARCH_ARTIFACT_ROOT names "
            f"{address_of(settings.artifact_root)}. Unset it, or name a folder."
        )
    if from_store and not in_store:
        raise BackupError(
            f"{source} has the objects of an object store and must be restored into one, but VITSEARCH_ARTIFACT_ROOT "
            "names none. Set it to an empty place such as s3://bucket/restored."
        )


def _load_database(url: str, folder: Path, name: str) -> None:
    saved = _saved_database(folder, name)
    if is_http(url) or not saved.exists():
        return
    file = sqlite_file(url) if url.startswith("sqlite") else None
    if file is None:
        load_postgresql(url, saved)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(saved, file)


def _require_empty(settings: Settings) -> None:
    engine = find_database(settings.database_url)
    if engine is not None:
        engine.dispose()
    used = [str(place) for place in _places(settings) if place.is_dir() and any(place.iterdir())]
    tracked = sqlite_file(settings.tracking_uri) if settings.tracking_uri.startswith("sqlite") else None
    used += [str(tracked)] if tracked is not None and tracked.exists() else []
    used += [str(settings.login_folder)] if settings.login_folder.exists() else []
    address = address_of(settings.artifact_root)
    try:
        used += [address] if address is not None and has_objects(settings.artifact_root) else []
    except ObjectStoreError as error:
        raise BackupError(str(error)) from error
    if engine is not None or used:
        raise BackupError(
            f"a backup must be restored into an empty installation, but {used[0] if used else settings.home} is in "
            "use. Set VITSEARCH_HOME (and VITSEARCH_DATABASE_URL, VITSEARCH_ARTIFACT_ROOT and MLFLOW_TRACKING_URI) to "
            "new ones, or move the old ones away."
        )
