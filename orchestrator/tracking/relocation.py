"""Finds MLflow's files again after a home was moved or copied.

MLflow's database contains absolute addresses of files. When a home is opened in another place than before, the
addresses of the files that came with it are corrected. Nothing here imports MLflow.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.tracking.local_files import local_path

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns with addresses of files. Versions of MLflow differ in which they have."""
_EXPERIMENTS = """
    SELECT DISTINCT e.artifact_location FROM experiments e JOIN experiment_tags t ON t.experiment_id = e.experiment_id
    WHERE t.key = 'vitsearch.study' AND e.artifact_location IS NOT NULL
"""
_LOCK_TIMEOUT_S = 60.0


def relocate_home(tracking_uri: str, artifact_root: Path) -> str | None:
    """Correct the addresses in MLflow's database, if it is an SQLite file; see `relocate`.

    Returns:
        Why they could not be corrected, for people; `None` if all are correct.
    """
    database = sqlite_path(tracking_uri)
    if database is None or not (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)):
        return None  # whoever may write corrects them
    try:
        relocate(database, artifact_root)
    except (sqlite3.Error, OSError, Timeout) as error:
        return f"the home was moved, and the addresses of files in {database} could not be corrected: {error}"
    return None


def relocate(database: Path, artifact_root: Path) -> int:
    """Correct the addresses of our experiments' files in an SQLite database of MLflow.

    An experiment is found again below `artifact_root` if its folder is there, or if it is no longer in its old place.
    Experiments of others are left alone.

    Args:
        database: MLflow's database; it may be missing.
        artifact_root: Folder in which our experiments have their folders.

    Returns:
        Number of experiment folders that have another place now.

    Raises:
        sqlite3.Error: The database cannot be read or written.
        OSError: The lock file cannot be written.
    """
    if not database.is_file():
        return 0
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT_S)) as connection:
        if not _moved(connection, artifact_root):
            return 0
    with (
        FileLock(f"{database}.lock", timeout=_LOCK_TIMEOUT_S),
        closing(sqlite3.connect(database, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as connection,
    ):
        connection.execute("BEGIN IMMEDIATE")
        moved = _moved(connection, artifact_root)  # again: another process may have been faster
        for old, new in moved:
            for table, column in _COLUMNS:
                _replace_prefix(connection, table, column, old, new)
        connection.execute("COMMIT")
        return len(moved)


def _moved(connection: sqlite3.Connection, artifact_root: Path) -> list[tuple[str, str]]:
    """The old and the new address of each folder that is elsewhere than its experiment says."""
    if not _has_column(connection, "experiments", "artifact_location"):
        return []
    found = []
    for (old,) in connection.execute(_EXPERIMENTS):
        place = local_path(old)
        if place is None or place.parent.name != artifact_root.name:
            continue
        new = artifact_root / place.name
        if place != new and (new.is_dir() or not place.exists()):
            found.append((old.rstrip("/"), new.absolute().as_uri()))
    return found


def _replace_prefix(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    if _has_column(connection, table, column):
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names from `_COLUMNS`
            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(name == column for _, name, *_ in connection.execute(f"PRAGMA table_info({table})"))


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite address; `None` for other addresses."""
    if not uri.startswith("sqlite:///"):
        return None
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_absolute():
        raise ValueError(
            f"a SQLite address must be absolute, as in sqlite:////home/me/mlflow.db, but got {uri}. Correct it."
        )
    return path
