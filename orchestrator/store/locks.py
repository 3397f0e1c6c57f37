"""A lock on a study for machines that share a PostgreSQL database. It ends with its connection."""

import hashlib
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from orchestrator.store.database import connect
from orchestrator.store.errors import DatabaseUnavailableError


class StudyLockedError(RuntimeError):
    """Another process holds the lock."""


class StudyLock:
    """A lock held on a separate connection, from `__enter__` until `__exit__` or the end of the process.

    A machine that vanishes loses it after a minute, when the server notices that the connection is dead. SQLite needs
    no such lock, because its users share lock files next to the database.

    Args:
        url: Address of the database.
        name: Name of the study.
    """

    def __init__(self, url: str, name: str) -> None:
        self._engine = connect(url)
        self._is_needed = self._engine.dialect.name == "postgresql"
        self._key = int.from_bytes(hashlib.sha256(f"vitsearch study {name}".encode()).digest()[:8], signed=True)
        self._connection: Connection | None = None
        self._renewing = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self.renew()
        except DBAPIError as error:
            raise DatabaseUnavailableError(
                f"the database must answer to run a study, but: {' '.join(str(error.orig).split())}. Start it, then "
                "run the same command again."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop()
        self._engine.dispose()

    def renew(self) -> None:
        """Take the lock, or take it again if it was lost with its connection. Several threads may do so at once.

        Raises:
            StudyLockedError: Another process has it.
            sqlalchemy.exc.DBAPIError: The database does not answer.
        """
        if not self._is_needed:
            return
        with self._renewing:  # otherwise one thread's new lock would refuse the other's
            if not self._is_held():
                self._take()

    def _take(self) -> None:
        self._drop()
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for setting, value in (("idle", 30), ("interval", 10), ("count", 3)):
            self._connection.execute(text(f"SET tcp_keepalives_{setting} = {value}"))
        if not self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}).scalar():
            self._drop()
            raise StudyLockedError

    def is_taken(self) -> bool:
        """Whether any process holds the lock, without taking it."""
        if not self._is_needed:
            return False
        # The view shows a key of 64 bits as two of 32.
        statement = text(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND (classid::bigint << 32) | objid::bigint = :key)"
        )
        with self._engine.connect() as connection:
            is_taken = bool(connection.execute(statement, {"key": self._key}).scalar())
        self._engine.dispose()
        return is_taken

    def _is_held(self) -> bool:
        if self._connection is None or self._connection.invalidated:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # closed instead of returned to the pool, to release the lock
            self._connection.close()
            self._connection = None
