"""What happens to calls on the store while its database is away: they wait for it, for a bounded time."""

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

from orchestrator.store.errors import DatabaseUnavailableError

WAIT_S = 120.0
"""How long a call waits for a database that went away, unless the settings say otherwise."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_OPTION = "vitsearch_patience"
_PASSING_STATES = frozenset({"25006", "40001", "40P01", "53300", "57P01", "57P02", "57P03", "57P05"})
"""PostgreSQL's codes of what passes: still a standby, serialization, deadlock, connections used up, shutting down."""

_OUR_MISTAKES = (DataError, IntegrityError, NotSupportedError, ProgrammingError)

_logger = logging.getLogger(__name__)
_is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)

Class = TypeVar("Class", bound=type)


class Patience:
    """How long the calls on one engine wait, all threads together.

    Args:
        where: The database, for messages; without its password.
        wait_s: Seconds.
    """

    def __init__(self, where: str, wait_s: float) -> None:
        self._where = where
        self._wait_s = wait_s
        self._away_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self.returned: Callable[[], None] = lambda: None
        """Called when the database has come back, before anything else is written."""

    def after_failure(self, error: DBAPIError) -> None:
        """Return when the call should be tried again.

        Raises:
            DatabaseUnavailableError: It should not.
        """
        reason = " ".join(str(error.orig).split())
        if not passes(error):
            raise DatabaseUnavailableError(
                f"the database {self._where} must take what is written, but: {reason}. What was written before is "
                "kept. Mend that (such as a full disk), then run the same command again."
            ) from error
        now = time.monotonic()
        if self._away_since is None:
            self._away_since, self._pause_s = now, _FIRST_PAUSE_S
            if error.connection_invalidated:
                return  # a connection that died while nobody used it: a new one may do
        waited = now - self._away_since
        if waited >= self._wait_s:
            raise DatabaseUnavailableError(
                f"the database {self._where} must answer, but it went away and did not come back within "
                f"{self._wait_s:g} s: {reason}. What was written before is kept. Start it, then run the same command "
                "again."
            ) from error
        if self._pause_s == _FIRST_PAUSE_S:
            _logger.warning("The database is away (%s); waiting up to %g s for it.", reason, self._wait_s)
        time.sleep(min(self._pause_s, self._wait_s - waited))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def after_success(self) -> None:
        """The database answers."""
        if self._away_since is not None:
            if self._pause_s > _FIRST_PAUSE_S:
                _logger.warning("The database is back.")
            self._away_since = None


def be_patient(engine: Engine, where: str, wait_s: float) -> None:
    """Let the calls of `patient` classes on this engine wait so long."""
    engine.update_execution_options(**{_OPTION: Patience(where, wait_s)})


def patience_of(engine: Engine) -> Patience:
    """Of an engine that `be_patient` was called with."""
    found: Patience = engine.get_execution_options()[_OPTION]
    return found


def patient(cls: Class) -> Class:
    """Let every public method of a class with an `_engine` wait for a database that went away, and do its work anew.

    Each of the methods must be one transaction. Where the connection died while the transaction was being committed,
    nobody knows whether it was: a method that must not do its work twice asks `is_repeated`.
    """
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(cls, name, _waiting(method))
    return cls


def is_repeated() -> bool:
    """Whether this call was made before and its connection died, so that its work may have been done."""
    return _is_repeated.get()


def passes(error: DBAPIError) -> bool:
    """Whether waiting can help: the connection died, none can be made, or something else holds what is needed."""
    if isinstance(error.orig, sqlite3.Error):
        return "database is locked" in str(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    from_connecting = error.statement is None and state is None
    return error.connection_invalidated or state in _PASSING_STATES or from_connecting


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        patience = patience_of(self._engine)
        token: Token[bool] | None = None
        try:
            while True:
                try:
                    if token is not None:
                        patience.returned()
                    result = method(self, *arguments, **named)
                except DBAPIError as error:
                    if isinstance(error, _OUR_MISTAKES):
                        raise
                    patience.after_failure(error)
                    token = token or _is_repeated.set(True)
                else:
                    patience.after_success()
                    return result
        finally:
            if token is not None:
                _is_repeated.reset(token)

    return call
