"""Backups of an installation: its databases, and the files of its studies and models."""

import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from orchestrator.safe_text import masked_address
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
_VARIABLES = "VITSEARCH_HOME (and VITSEARCH_DATABASE_URL, VITSEARCH_ARTIFACT_ROOT and MLFLOW_TRACKING_URI)"


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
    _require_new(target)
    part = target.with_name(f"{target.name}.part")
    _require_new(part)
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
        about = {
            "format": _FORMAT,
            "vitsearch": version("vitsearch"),
            "made_at": time.time(),
            "left_out": left_out,
            "objects_in": None if with_objects else address,
        }
        (part / MANIFEST).write_text(json.dumps(about, indent=2), encoding="utf-8")
        part.replace(target)
    except (SnapshotError, ObjectStoreError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BackupError(f"{error} Nothing was kept in {target}.") from error
    except (OSError, shutil.Error) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BackupError(f"{target} must have space for all files, and all must be readable, but: {error}.") from error
    return Backup(sum(file.stat().st_size for file in target.rglob("*") if file.is_file()), tuple(left_out))


def restore_backup(settings: Settings, source: Path) -> str | None:
    """Fill a new home, and empty databases, from a backup.

    Args:
        settings: Settings of the new installation. Its object store must be empty only if the backup contains objects.
        source: A folder that `make_backup` made.

    Returns:
        What is missing in the new installation, for people.

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
    with_objects = (source / _OBJECTS).is_dir()
    address = address_of(settings.artifact_root)
    try:
        is_stored = address is not None and has_objects(settings.artifact_root)
    except ObjectStoreError as error:
        raise BackupError(str(error)) from error
    _require_empty(settings, used_address=address if is_stored and with_objects else None)
    for name, url in _urls(settings).items():
        _require_same_kind(url, source, name)
    _require_same_place(settings, source)
    loaded = []
    try:
        for name, folder in zip(_FOLDERS, _places(settings), strict=True):
            if (source / name).is_dir():
                copy = _LinkedCopy()
                shutil.copytree(source / name, folder, symlinks=True, dirs_exist_ok=True, copy_function=copy)
        _copy_login(source / _LOGIN, settings.login_folder)
        if with_objects:
            load_objects(source / _OBJECTS, settings.artifact_root)
        for name, url in _urls(settings).items():
            loaded += [masked_address(url)] if _load_database(url, source, name) else []
    except (SnapshotError, OSError, shutil.Error) as error:
        written = [*_files_in_use(settings), *loaded]
        written += [f"everything below {address}"] if with_objects else []
        before = f"remove what was restored so far ({', '.join(written)}), or set {_VARIABLES} to new places"
        raise BackupError(
            f"{_reason(error, settings)} " + (f"Before you restore again, {before}." if written else "")
        ) from error
    left_in = about.get("objects_in")
    if left_in is None or is_stored or with_objects:
        return None
    return (
        f"checkpoints and champions are not in the backup, which was made with --no-objects. They were in {left_in}. "
        "Set VITSEARCH_ARTIFACT_ROOT to this address, or to that of a copy"
    )


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


def _load_database(url: str, folder: Path, name: str) -> bool:
    """Fill a database; returns whether it is one of a server, and was filled."""
    saved = _saved_database(folder, name)
    if is_http(url) or not saved.exists():
        return False
    file = sqlite_file(url) if url.startswith("sqlite") else None
    if file is None:
        load_postgresql(url, saved)
        return True
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(saved, file)
    return False


def _reason(error: SnapshotError | OSError, settings: Settings) -> str:
    """Why a backup could not be restored, without the advice to run the same command again."""
    if isinstance(error, ObjectStoreError):
        return f"{error.reason} Check the network, and the endpoint and credentials in the environment."
    return str(error) if isinstance(error, SnapshotError) else f"{settings.home} must be writable, but: {error}."


def _require_new(folder: Path) -> None:
    if folder.exists():
        raise BackupError(f"a backup needs a new folder, but {folder} exists. Choose another name.")


def _require_empty(settings: Settings, *, used_address: str | None) -> None:
    used = _files_in_use(settings) + ([used_address] if used_address is not None else [])
    if not settings.database_url.startswith("sqlite"):
        engine = find_database(settings.database_url)
        if engine is not None:
            engine.dispose()
            used.append(masked_address(settings.database_url))
    if used:
        raise BackupError(
            f"a backup must be restored into an empty installation, but {used[0]} is in use. Set {_VARIABLES} to new "
            "places, or move the old ones away."
        )


def _files_in_use(settings: Settings) -> list[str]:
    """Folders and database files of an installation that are not empty."""
    used = [place for place in _places(settings) if place.is_dir() and any(place.iterdir())]
    files = [sqlite_file(url) for url in _urls(settings).values() if url.startswith("sqlite")]
    used += [file for file in (*files, settings.login_folder) if file is not None and file.exists()]
    return [str(place) for place in used]
