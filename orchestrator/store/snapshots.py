"""Copies of databases that are whole although other processes write meanwhile, and reading without write access."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.engine import make_url

from orchestrator.safe_text import without_secrets


class SnapshotError(RuntimeError):
    """A database cannot be copied or restored; the message says why."""


def is_read_only(file: Path) -> bool:
    """Whether this process may not write an SQLite database: another user's, or one on a read-only disk."""
    return not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def copy_sqlite(file: Path, target: Path) -> None:
    """Copy an SQLite database, with what other processes have written, to a new file.

    Raises:
        SnapshotError: It is damaged, or cannot be read or written.
    """
    try:
        address = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.OperationalError as error:
        if not is_read_only(file):
            raise SnapshotError(f"the database {file} must be copied to {target}, but: {error}.") from error
        # Without write access, SQLite cannot read a log that no process has open. Nothing changes the files then.
        for suffix in ("", "-wal"):
            if Path(f"{file}{suffix}").exists():
                shutil.copyfile(f"{file}{suffix}", f"{target}{suffix}")
    except sqlite3.DatabaseError as error:
        raise SnapshotError(f"the database {file} must be intact to be copied, but: {error}.") from error
    except OSError as error:
        raise SnapshotError(f"the database {file} must be copied to {target}, but: {error.strerror}.") from error


def temporary_copy(file: Path) -> Path:
    """A copy of an SQLite database in a new temporary folder, which the caller removes."""
    target = Path(tempfile.mkdtemp(prefix="vitsearch-")) / file.name
    copy_sqlite(file, target)
    return target


def dump_postgresql(url: str, target: Path) -> None:
    """Write the content of a PostgreSQL database to a file, with `pg_dump`.

    Raises:
        SnapshotError: `pg_dump` is not installed, or fails.
    """
    _run_client(["pg_dump", "--format=custom", "--no-owner", f"--file={target}"], make_url(url))


def load_postgresql(url: str, source: Path) -> None:
    """Fill an empty PostgreSQL database from a file that `dump_postgresql` wrote, with `pg_restore`.

    Raises:
        SnapshotError: `pg_restore` is not installed, or fails; the database is unchanged then.
    """
    arguments = ["pg_restore", "--no-owner", "--single-transaction", "--exit-on-error"]
    parsed = make_url(url)
    _run_client([*arguments, f"--dbname={parsed.database}", str(source)], parsed)


def _run_client(arguments: list[str], url: URL) -> None:
    """Run a client of PostgreSQL. The address is passed by environment, since `ps` shows arguments."""
    given = {
        "PGHOST": url.host,
        "PGPORT": url.port and str(url.port),
        "PGUSER": url.username,
        "PGPASSWORD": None if url.password is None else str(url.password),
        "PGDATABASE": url.database,
        **{f"PG{name.upper()}": value for name, value in url.query.items() if name in ("host", "port", "sslmode")},
    }
    environment = {**os.environ, **{name: str(value) for name, value in given.items() if value}}
    try:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise SnapshotError(
            f"{arguments[0]} must be installed for a PostgreSQL database, but is not. Install PostgreSQL's clients."
        ) from None
    if done.returncode != 0:
        reason = " ".join(without_secrets(done.stderr).split())
        raise SnapshotError(f"{arguments[0]} must succeed, but: {reason}")
