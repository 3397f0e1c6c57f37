"""Claims submitted studies and starts a driver for each, a process that renews its lease itself and may outlive us."""

import contextlib
import logging
import math
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from orchestrator.engines.ray.connection import why_it_waits
from orchestrator.service.devices import DevicePool, Placing, device_environment
from orchestrator.service.submitting import log_file
from orchestrator.settings import Settings
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord
from orchestrator.store.submission_leases import LeaseLostError

PROCESS_MODULE = "orchestrator.cli.background"
POLL_S = 1.0
RENEW_S = 10.0
"""Seconds between two renewals of the lease of a driver that has not begun."""
START_S = 600.0
"""How long a driver may take to begin. On a busy machine, or from a slow disk, its imports alone outlast a lease."""
LOOK_S = 5.0
"""Seconds between two looks whether the cluster answers."""
_SOON_S = 60.0

_logger = logging.getLogger(__name__)


class _Start(NamedTuple):
    """Times of `time.monotonic` about a driver that was started."""

    renew_at: float
    give_up_at: float


class Supervisor:
    """One replica of the service's queue. Several may share a database.

    Args:
        store: The store.
        settings: Settings of the installation, also of the drivers.
        pool: The devices that this replica gives to studies.
    """

    def __init__(self, store: Store, settings: Settings, pool: DevicePool) -> None:
        self._store, self._settings, self._pool = store, settings, pool
        self._queue = store.queue()
        self._drivers: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._starting: dict[tuple[str, int], _Start] = {}
        self._absence: str | None = None
        self._look_at = -math.inf
        self.replica = f"{platform.node()[:40]}-{os.getpid()}-{secrets.token_hex(3)}"

    def run(self, should_stop: Callable[[], bool], *, until_idle: bool = False, poll_s: float = POLL_S) -> None:
        """Start drivers until `should_stop`; those that run then continue without this process.

        Args:
            should_stop: Asked after every step.
            until_idle: Whether to end when nothing waits or runs.
            poll_s: Seconds between two steps.
        """
        while not should_stop():
            try:
                self.step()
                if until_idle and self.is_idle():
                    return
            except DatabaseUnavailableError as error:
                _logger.warning("%s", error)
            time.sleep(poll_s)

    def step(self) -> None:
        """Note drivers that have ended, and start those that can run now."""
        self._reap()
        self._renew_starting()
        self._look_for_cluster()
        pool, absence = self._pool, self._absence
        while (claimed := self._queue.claim(self.replica, pool.name, Placing(pool, absence))) is not None:
            if not self._start(claimed):
                return

    def is_idle(self) -> bool:
        """Whether nothing waits or runs, in any replica, and no webhook is due soon."""
        if self._queue.count("waiting") or self._queue.count("running"):
            return False
        return self._store.webhooks().num_due(within_s=_SOON_S) == 0

    def _look_for_cluster(self) -> None:
        """Let studies wait while their cluster does not answer: their drivers would fail."""
        if self._pool.is_cluster and time.monotonic() >= self._look_at:
            self._absence = why_it_waits(self._pool.name)
            self._look_at = time.monotonic() + LOOK_S

    def _start(self, claimed: SubmissionRecord) -> bool:
        """Start the driver of a study, or let it wait again; returns whether it was started."""
        if (claimed.uid, claimed.lease) in self._drivers:  # a claim repeated after an outage
            return True
        devices = device_environment(claimed.devices or {}, self._pool, os.environ)
        arguments = [claimed.uid, str(claimed.lease)]
        try:
            driver = _start_process(arguments, self._settings, log_file(self._settings, claimed), devices)
        except OSError as error:
            why = f"its driver could not be started: {error.strerror}"
            self._queue.end(claimed.uid, claimed.lease, "waiting", why)
            return False
        _lower_priority(driver, self._settings.driver_nice)
        self._drivers[claimed.uid, claimed.lease] = driver
        now = time.monotonic()
        self._starting[claimed.uid, claimed.lease] = _Start(renew_at=now + RENEW_S, give_up_at=now + START_S)
        return True

    def _renew_starting(self) -> None:
        """Renew the leases of drivers that have not begun to do so themselves."""
        now = time.monotonic()
        for (uid, lease), start in list(self._starting.items()):
            if now < start.renew_at:
                continue
            # If the database does not answer, the driver is still starting at the next step.
            if now <= start.give_up_at and self._renew(uid, lease):
                self._starting[uid, lease] = start._replace(renew_at=now + RENEW_S)
            else:
                del self._starting[uid, lease]

    def _renew(self, uid: str, lease: int) -> bool:
        """Renew the lease of a driver unless it has begun, ended or lost it; returns whether it was renewed."""
        if (uid, lease) not in self._drivers:
            return False
        found = self._queue.find(uid)
        if found is None or found.lease != lease or found.pid is not None:
            return False
        try:
            self._queue.heartbeat(uid, lease)
        except LeaseLostError:
            return False
        return True

    def _reap(self) -> None:
        for (uid, lease), driver in list(self._drivers.items()):
            status = driver.poll()
            if status is None:
                continue
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self._queue.give_up(uid, lease, f"its driver {how}")
            del self._drivers[uid, lease]


def start_queue(settings: Settings) -> bool:
    """Start a process that runs submitted studies until none is left, unless there is one for this home.

    It outlives this process and its terminal.

    Returns:
        Whether it was started.
    """
    lock = queue_lock(settings)
    try:
        with FileLock(lock, timeout=0):
            pass
    except Timeout:
        return False
    _start_process([], settings, settings.home / "logs" / "queue.log", {})
    return True


def queue_lock(settings: Settings) -> Path:
    """The file that the process locks which runs the submitted studies of a home."""
    folder = settings.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "~queue.lock"  # no study has such a name


def _start_process(
    arguments: Sequence[str], settings: Settings, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process in a new session, so that it outlives the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", PROCESS_MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**_without_settings(os.environ), **settings.environment(), **environment},
            cwd=log.parent,
            start_new_session=True,
        )


def _lower_priority(process: subprocess.Popen[bytes], by: int) -> None:
    """Let a process yield the cores to this one; processes that it starts later do, too."""
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + by, 19))


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without our settings, among them the token of whoever started this process."""
    return {name: value for name, value in environment.items() if not name.startswith("VITSEARCH_")}
