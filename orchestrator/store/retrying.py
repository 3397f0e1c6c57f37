"""Retries calls on the store while its database is unreachable, for a limited time."""

import functools
import inspect
import logging
import sqlite3
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError

from orchestrator.safe_text import reason_of
from orchestrator.store.errors import DatabaseUnavailableError

WAIT_S = 120.0
"""Default time for which calls are retried."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_OPTION = "vitsearch_retries"
_TEMPORARY_STATES = frozenset({"25006", "40001", "40P01", "53300", "57P01", "57P02", "57P03", "57P05"})
"""PostgreSQL's codes of temporary errors: standby, serialization, deadlock, too many connections, shutting down."""

_OUR_MISTAKES = (DataError, IntegrityError, NotSupportedError, ProgrammingError)

_logger = logging.getLogger(__name__)
_is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)

Class = TypeVar("Class", bound=type)


class OutageRetries:
    """Decides whether calls on one engine are retried; all threads share it.

    Args:
        where: The database, for messages, without its password.
        wait_s: How long calls are retried, in seconds.
    """

    def __init__(self, where: str, wait_s: float) -> None:
        self._where = where
        self._wait_s = wait_s
        self._away_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self.on_return: Callable[[], None] = lambda: None
        """Called when the database answers again, before anything else is written."""

    def after_failure(self, error: DBAPIError) -> None:
        """Wait, and return when the call should be tried again.

        Raises:
            DatabaseUnavailableError: It should not be tried again.
        """
        reason = reason_of(str(error.orig))
        if is_damage(reason):
            raise DatabaseUnavailableError(
                f"the database {self._where} is damaged: {reason}. Restore it from a backup (docs/backup.md); "
                "the files of the studies beside it may be intact."
            ) from error
        if not is_temporary(error):
            raise DatabaseUnavailableError(
                f"the database {self._where} must accept writes, but: {reason}. Earlier writes are kept. Fix the "
                "cause, such as a full disk, then run the same command again."
            ) from error
        now = time.monotonic()
        if self._away_since is None:
            self._away_since, self._pause_s = now, _FIRST_PAUSE_S
            if error.connection_invalidated:
                return  # an idle connection died: a new one may work
        waited = now - self._away_since
        if waited >= self._wait_s:
            raise DatabaseUnavailableError(
                f"the database {self._where} must answer, but did not for {self._wait_s:g} s: {reason}. Earlier writes "
                "are kept. Start it, then run the same command again."
            ) from error
        if self._pause_s == _FIRST_PAUSE_S:
            _logger.warning("The database does not answer (%s); retrying for up to %g s.", reason, self._wait_s)
        time.sleep(min(self._pause_s, self._wait_s - waited))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def after_success(self) -> None:
        """Note that the database answers."""
        if self._away_since is not None:
            if self._pause_s > _FIRST_PAUSE_S:
                _logger.warning("The database answers again.")
            self._away_since = None


def is_damage(reason: str) -> bool:
    """Whether SQLite's words tell of a damaged file."""
    return any(words in reason for words in ("malformed", "file is not a database"))


def set_retry_time(engine: Engine, where: str, wait_s: float) -> None:
    """Retry calls of `retry_on_outage` classes on this engine for up to `wait_s` seconds."""
    engine.update_execution_options(**{_OPTION: OutageRetries(where, wait_s)})


def retries_of(engine: Engine) -> OutageRetries:
    """The retries of an engine, set by `set_retry_time`."""
    found: OutageRetries = engine.get_execution_options()[_OPTION]
    return found


def retry_on_outage(cls: Class) -> Class:
    """Retry every public method of a class with an `_engine` while the database is unreachable.

    Each method must be one transaction. If the connection dies during a commit, its result is unknown: a method that
    must not do its work twice calls `is_repeated`.
    """
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(cls, name, _retried(method))
    return cls


def is_repeated() -> bool:
    """Whether this call is a retry, whose work may already be done."""
    return _is_repeated.get()


def is_temporary(error: DBAPIError) -> bool:
    """Whether a retry can help: the connection died, no connection can be made, or rows are locked."""
    if isinstance(error.orig, sqlite3.Error):
        return "database is locked" in str(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    from_connecting = error.statement is None and state is None
    return error.connection_invalidated or state in _TEMPORARY_STATES or from_connecting


def _retried(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        retries = retries_of(self._engine)
        token: Token[bool] | None = None
        try:
            while True:
                try:
                    if token is not None:
                        retries.on_return()
                    result = method(self, *arguments, **named)
                except DBAPIError as error:
                    if isinstance(error, _OUR_MISTAKES):
                        raise
                    retries.after_failure(error)
                    token = token or _is_repeated.set(True)
                else:
                    retries.after_success()
                    return result
        finally:
            if token is not None:
                _is_repeated.reset(token)

    return call
