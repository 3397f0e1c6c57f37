"""Opens the database, with our connection settings, and migrates it, one process at a time."""

import json
import math
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import URL, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from orchestrator.safe_text import masked_address, reason_of
from orchestrator.settings import SettingsError
from orchestrator.store.retrying import WAIT_S, is_damage, set_retry_time
from orchestrator.store.snapshots import SnapshotError, is_read_only, temporary_copy

HEAD = "0007"
"""The newest migration; a test compares it with `migrations/versions/`."""
INSTALL_POSTGRES = "pip install 'psycopg[binary]'"

_ADVISORY_LOCK = 0x76697473  # "vits" in ASCII: a number that other programs are unlikely to use
_CONNECT_S = 10
_SHORT_NAMES = ("postgresql", "postgres")


def open_database(url: str, *, wait_s: float = WAIT_S) -> Engine:
    """Connect, and migrate the tables if necessary. Several processes may call this at the same time.

    Args:
        url: Address of an SQLite or PostgreSQL database.
        wait_s: How long later calls of `retry_on_outage` classes retry; this call does not.

    Raises:
        SettingsError: The URL is invalid, or no database of ours can be opened there.
        RuntimeError: A newer vitsearch wrote the database.
    """
    parsed = _parse(url)
    try:
        engine = connect(url, wait_s=wait_s)
        if _revision(engine) != HEAD:
            _migrate(engine, url)
    except DBAPIError as error:
        raise _unusable(parsed, str(error.orig)) from error
    return engine


def find_database(url: str, *, wait_s: float = WAIT_S) -> Engine | None:
    """Open an existing database; `None` if vitsearch never wrote to it. Nothing is created.

    Raises:
        SettingsError: The URL is invalid, or the database cannot be opened.
        RuntimeError: A newer vitsearch wrote the database.
    """
    file = sqlite_file(url)
    if file is not None:
        if not file.exists():
            return None
        return _open_copy(file, wait_s) if is_read_only(file) else open_database(url, wait_s=wait_s)
    engine = connect(url)
    try:
        is_there = _revision(engine) is not None
    except DBAPIError as error:
        raise _unusable(_parse(url), str(error.orig)) from error
    finally:
        engine.dispose()
    return open_database(url, wait_s=wait_s) if is_there else None


def _open_copy(file: Path, wait_s: float) -> Engine:
    """A copy, with the newest tables, of a database that this process may only read. Writes are refused."""
    try:
        copy = temporary_copy(file)
    except SnapshotError as error:
        raise damaged(str(file), str(error)) from error
    except OSError as error:
        raise SettingsError(
            f"the database {file} must be readable, but: {error.strerror}. Ask its owner for access, or use another "
            "home (VITSEARCH_HOME)."
        ) from error
    engine = open_database(f"sqlite:///{copy}", wait_s=wait_s)
    engine.dispose()
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=ON"))
    weakref.finalize(engine, shutil.rmtree, copy.parent, ignore_errors=True)
    return engine


def damaged(where: str, reason: str) -> SettingsError:
    """The error for a database that is damaged."""
    return SettingsError(
        f"the database {where} is damaged: {reason.rstrip('.')}. Restore it from a backup (docs/backup.md); "
        "the files of the studies beside it may be intact."
    )


def connect(url: str, *, wait_s: float = WAIT_S) -> Engine:
    """An engine for a database, without migration. The first statement connects.

    Raises:
        SettingsError: The URL is invalid, or its driver is not installed.
    """
    parsed = _parse(url)
    try:
        # Errors must not show parameters, which may be secrets of webhooks.
        engine = create_engine(parsed, hide_parameters=True, **_options(parsed))
    except NoSuchModuleError as error:
        raise _unusable(parsed, str(error)) from error
    except ImportError as error:
        raise SettingsError(
            f"VITSEARCH_DATABASE_URL: {_shown(parsed)} needs the driver {parsed.get_driver_name()!r}, which "
            f"cannot be imported here ({error}). Install it with: {INSTALL_POSTGRES}"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    set_retry_time(engine, _shown(parsed), wait_s)
    return engine


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; `None` for another database or one in memory."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise SettingsError(
            "VITSEARCH_DATABASE_URL: must be an SQLAlchemy URL, such as sqlite:////srv/vitsearch.db or "
            f"postgresql://host/vitsearch, but got {masked_address(url)}. Correct or unset it."
        ) from None
    if parsed.drivername in _SHORT_NAMES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise SettingsError(
            f"VITSEARCH_DATABASE_URL: must name an SQLite or PostgreSQL database, but got "
            f"{parsed.drivername!r}. Correct or unset it."
        )
    return parsed


def _shown(url: URL) -> str:
    return masked_address(url.render_as_string())


def _unusable(url: URL, reason: str) -> SettingsError:
    shown = reason_of(reason)
    if is_damage(reason):
        return damaged(_shown(url), shown)
    if url.get_backend_name() == "sqlite" and not os.environ.get("VITSEARCH_DATABASE_URL"):
        return SettingsError(
            f"the database {_shown(url)} must be written by vitsearch, but: {shown}. Check the permissions and the "
            "space of its folder, or use another home (VITSEARCH_HOME)."
        )
    return SettingsError(
        f"VITSEARCH_DATABASE_URL: the database {_shown(url)} must be reachable and written by vitsearch, "
        f"but: {shown}. Correct or unset the variable, or start the server."
    )


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 30, "check_same_thread": False}}
    given = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_S}
    return {"connect_args": given, "json_serializer": _plain_json}


def _plain_json(value: Any) -> str:
    """JSON for PostgreSQL, which has no NaN and no infinity: they become strings that read back as numbers."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_special_numbers(value))


def _without_special_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_special_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_special_numbers(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL: readers and the writer do not wait for each other. NORMAL: no fsync per commit, safe if a process dies.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return found


def _migrate(engine: Engine, url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    file = sqlite_file(url)
    with engine.connect() as connection:
        if file is not None:
            with FileLock(f"{file}.lock"):
                _upgrade(connection, config, command, ScriptDirectory.from_config(config))
            return
        # A lock of the transaction: its end releases the lock, even behind a connection pooler.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        _upgrade(connection, config, command, ScriptDirectory.from_config(config))


def _upgrade(connection: Any, config: Any, command: Any, scripts: Any) -> None:
    from alembic.migration import MigrationContext

    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise RuntimeError(
            f"the database must come from this version of vitsearch or an older one (newest known migration: {HEAD}), "
            f"but it is at {current}. Install the newer vitsearch that wrote it."
        )
    config.attributes["connection"] = connection
    if connection.dialect.name == "sqlite":
        # Python's driver begins no transaction for CREATE TABLE; a killed process would leave half of the tables.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    command.upgrade(config, "head")
    connection.commit()
