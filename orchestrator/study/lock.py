"""Ensures that only one process at a time runs a study, on all machines that share its database."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.settings import Settings
from orchestrator.store.locks import StudyLock, StudyLockedError


class StudyBusyError(RuntimeError):
    """Another process is running the study."""

    def __init__(self, name: str, *, is_to_be_deleted: bool = False) -> None:
        super().__init__(
            f"study {name!r} must not run when it is deleted, but another process is running it. Stop it first: "
            f"vitsearch cancel {name}"
            if is_to_be_deleted
            else f"study {name!r} must run in one process at a time, but another process is running it. "
            f"Watch it with: vitsearch status {name}"
        )


@contextmanager
def hold_study(name: str, settings: Settings) -> Iterator[Callable[[], None]]:
    """Hold the lock of a study; yields a function that renews it after the database was unreachable.

    Raises:
        StudyBusyError: Another process holds the lock.
        orchestrator.store.errors.DatabaseUnavailableError: The database that holds the lock does not answer.
    """
    folder = settings.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{name}.lock", timeout=0), StudyLock(settings.database_url, name) as lock:
            yield lock.renew
    except (Timeout, StudyLockedError):
        raise StudyBusyError(name) from None


def is_held(name: str, settings: Settings) -> bool:
    """Whether a process is running the study."""
    file = settings.home / "locks" / f"{name}.lock"
    if file.exists() and not os.access(file, os.W_OK):
        return _is_locked(file) or StudyLock(settings.database_url, name).is_taken()
    try:
        with FileLock(file, timeout=0) if file.exists() else nullcontext():
            return StudyLock(settings.database_url, name).is_taken()
    except Timeout:
        return True


def _is_locked(file: Path) -> bool:
    """Whether a process holds the lock of a file that this process may only read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
