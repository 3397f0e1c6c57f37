"""Opens the database: connection settings, and one migration at a time."""

from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import URL, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from orchestrator.settings import SettingsError

HEAD = "0001"
"""The newest migration; a test compares it with `migrations/versions/`."""

_ADVISORY_LOCK = 0x76697473  # "vits": any number that no other program takes


def open_database(url: str) -> Engine:
    """Connect, and bring the tables up to date where they are not; safe for many processes at once.

    Raises:
        SettingsError: The URL cannot be read, or no database of ours can be opened there.
        RuntimeError: The database was written by a newer vitsearch.
    """
    parsed = _parse(url)
    try:
        engine = create_engine(parsed, **_options(parsed))
        if parsed.get_backend_name() == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        if _revision(engine) != HEAD:
            _migrate(engine, url)
    except (DBAPIError, NoSuchModuleError, ModuleNotFoundError) as error:
        reason = str(error.orig if isinstance(error, DBAPIError) else error)
        raise _unusable(parsed, reason) from error
    return engine


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; `None` for another database or one in memory."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:
        raise SettingsError(
            f"VITSEARCH_DATABASE_URL: must be an SQLAlchemy URL, such as sqlite:////srv/vitsearch.db, but got {url!r}. "
            "Correct or unset it."
        ) from None


def _unusable(url: URL, reason: str) -> SettingsError:
    return SettingsError(
        f"VITSEARCH_DATABASE_URL: the database {url.render_as_string()} must be reachable and ours, but: {reason}. "
        "Correct or unset the variable, or start the server."
    )


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 30, "check_same_thread": False}}
    return {"pool_pre_ping": True}


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL: readers and the writer do not wait for each other. NORMAL: safe when a process dies, no fsync per commit.
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
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))
            connection.commit()
        try:
            _upgrade(connection, config, command, ScriptDirectory.from_config(config))
        finally:
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})"))
                connection.commit()


def _upgrade(connection: Any, config: Any, command: Any, scripts: Any) -> None:
    from alembic.migration import MigrationContext

    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise RuntimeError(
            f"the database must be of this version of vitsearch or an older one (newest known migration: {HEAD}), "
            f"but it is at {current}. Install the newer vitsearch that wrote it."
        )
    config.attributes["connection"] = connection
    if connection.dialect.name == "sqlite":
        # Python's driver begins no transaction for CREATE TABLE: a killed process would leave half of the tables.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    command.upgrade(config, "head")
    connection.commit()
