"""The processes of submitted studies: `python -m orchestrator.cli.background`.

`SUBMISSION LEASE` runs one study as its driver; without arguments, the queue is worked off until it is empty.
"""

import logging
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

from filelock import FileLock, Timeout
from rich.console import Console

from orchestrator.abrupt_end import AbruptEnd
from orchestrator.cli.exit_status import INTERRUPTED, status_of
from orchestrator.cli.progress import PlainProgress
from orchestrator.cli.quiet import quiet_libraries
from orchestrator.engines.interfaces import RayLostError
from orchestrator.safe_text import SafeFormatter, without_secrets
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import StudySpec
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord
from orchestrator.store.submission_leases import LeaseLostError

HEARTBEAT_S = 10.0
BUSY_S = 5.0
"""Pause before trying again to run a study that another process is running."""
_WIDTH = 200
_End = tuple[str, str | None]
"""State of a submission after its driver, and the reason."""

_logger = logging.getLogger(__name__)


class DriverControl:
    """Why a driver should stop: someone cancelled the study, the lease was lost, or a signal came."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.is_lost = False
        self.signal: str | None = None
        self._end = AbruptEnd()

    def should_stop(self) -> bool:
        """Whether to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Stop after the current step."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait; returns at once, with true, when the driver should stop."""
        return self._stop.wait(seconds)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The first signal stops cleanly, the second one at once."""
        if self.signal is not None:
            self._end.start(INTERRUPTED)
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        self.stop()

    def let_end(self) -> None:
        """Let the driver end cleanly: the study has stopped after the second signal."""
        self._end.cancel()


def drive(
    uid: str, lease: int, settings: Settings, control: DriverControl, *, heartbeat_s: float = HEARTBEAT_S
) -> None:
    """Run a claimed submission to its end, and write how it ended.

    Args:
        uid: The submission.
        lease: The number of its lease.
        settings: Settings of the installation.
        control: Ends the study early.
        heartbeat_s: Seconds between two renewals of the lease.

    Raises:
        LeaseLostError: Another driver has the submission.
        orchestrator.store.errors.DatabaseUnavailableError: The database does not answer. The lease then ends by itself.
    """
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root, wait_s=settings.database_wait_s)
    queue = store.queue()
    submission = queue.begin(uid, lease, host=platform.node(), pid=os.getpid())
    over = threading.Event()

    def renew() -> None:
        while not over.wait(heartbeat_s):
            try:
                if queue.heartbeat(uid, lease):
                    control.stop()
            except LeaseLostError:
                control.is_lost = True
                control.stop()
                return
            except DatabaseUnavailableError as error:
                _logger.warning("%s", error)

    heart = threading.Thread(target=renew, daemon=True, name="heartbeat")
    heart.start()
    lost: RayLostError | None = None
    try:
        state, reason = _run(submission, store, settings, control)
    except RayLostError as error:
        lost = error
    finally:
        over.set()
    heart.join()
    if control.is_lost:
        raise LeaseLostError(f"submission {uid} was taken over by another process, so this one has stopped.")
    if lost is None:
        ended = queue.end(uid, lease, state, reason)
    else:  # the study continues when Ray runs again, unless it is the study that ends Ray each time
        _say(str(lost))
        ended = queue.give_up(uid, lease, lost.loss, at_last=str(lost)) or submission
    store.close()
    _say(f"{ended.name}: {ended.state}" + (f": {ended.reason}" if ended.reason else ""))


def _run(submission: SubmissionRecord, store: Store, settings: Settings, control: DriverControl) -> _End:
    """Run the study."""
    from orchestrator.study.driver import run_study
    from orchestrator.study.lock import StudyBusyError

    spec, text = store.queue().spec_of(submission.uid)
    progress = PlainProgress(Console(width=_WIDTH, highlight=False))
    while True:
        try:
            study = run_study(
                StudySpec.model_validate(spec),
                text,
                settings,
                progress=progress,
                control=control,
                retry_failed=submission.retry_failed,
                stops_decoding=True,
            )
        except StudyBusyError as error:
            _say(f"{error} Trying again in {BUSY_S:g} s.")
            if control.wait(BUSY_S):
                return _stopped(control)
        except KeyboardInterrupt:
            control.let_end()
            return _stopped(control)
        except Exception as error:
            if isinstance(error, DatabaseUnavailableError | RayLostError):
                raise
            if status_of(error) is None:
                _say(traceback.format_exc())
                return "failed", without_secrets(f"{type(error).__name__}: {error}")
            return "failed", without_secrets(str(error))
        else:
            if study.state == "interrupted" and control.should_stop():
                return _stopped(control)
            return study.state, study.reason


def _stopped(control: DriverControl) -> _End:
    if control.signal is not None:
        return "waiting", f"its driver was stopped by {control.signal}; it will be resumed"
    return "interrupted", "it was cancelled"


def work_off_queue(settings: Settings, *, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Run submitted studies until none waits or runs. Only one process per home does so."""
    from orchestrator.service.devices import detect_pool
    from orchestrator.service.supervisor import Supervisor, queue_lock
    from orchestrator.service.webhooks import WebhookSender

    lock = queue_lock(settings)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root, wait_s=settings.database_wait_s)
    supervisor, over = None, threading.Event()
    sender = threading.Thread(target=WebhookSender(store, settings).run, args=(over,), name="webhooks", daemon=True)
    sender.start()
    try:
        # Without the second look at the queue, a study submitted while the lock is still held would wait for ever.
        while not supervisor or not (should_stop() or supervisor.is_idle()):
            with FileLock(lock, timeout=0):
                supervisor = supervisor or Supervisor(store, settings, detect_pool(settings))
                supervisor.run(should_stop, until_idle=True)
    except Timeout:
        pass  # the other process sees the study
    finally:
        over.set()
        sender.join()
        store.close()


def _say(message: str) -> None:
    print(without_secrets(message), flush=True)  # noqa: T201 - into the log


def _main(arguments: list[str]) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    quiet_libraries()
    settings = load_settings()
    settings.apply()
    try:
        if arguments:
            control = DriverControl()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, control.on_signal)
            drive(arguments[0], int(arguments[1]), settings, control)
        else:
            work_off_queue(settings)
    except (LeaseLostError, DatabaseUnavailableError) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
