"""Exit statuses of failures: the only place that maps exceptions to statuses.

The table names classes as text, because importing some of them would import torch.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.cli.console import fail
from trainers.yaml_source import SpecError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

STATUS = {
    "orchestrator.engines.optuna_export:OptunaExportError": BAD_INPUT,
    "orchestrator.client:NoServiceError": BAD_INPUT,
    "orchestrator.client:RequestRefusedError": BAD_INPUT,
    "orchestrator.client:ServerUnavailableError": FAILED,
    "orchestrator.service.access_tokens:TokenError": BAD_INPUT,
    "orchestrator.service.owner_weights:WeightError": BAD_INPUT,
    "orchestrator.service.references:PrivateStudyError": BAD_INPUT,
    "orchestrator.service.submitting:SubmissionError": BAD_INPUT,
    "orchestrator.service.submitting:UnknownSubmissionError": BAD_INPUT,
    "orchestrator.settings:SettingsError": BAD_INPUT,
    "orchestrator.spec.truth_error:TruthError": BAD_INPUT,
    "orchestrator.spec.warm_start:WarmStartError": BAD_INPUT,
    "trainers.yaml_source:SpecError": BAD_INPUT,
    "orchestrator.store.study_names:NameTakenError": BAD_INPUT,
    "orchestrator.store.submission_rows:IdempotencyError": BAD_INPUT,
    "orchestrator.study.access:UnknownStudyError": BAD_INPUT,
    "orchestrator.study.backup:BackupError": BAD_INPUT,
    "orchestrator.study.comparison:NoTrialsError": BAD_INPUT,
    "orchestrator.study.driver:DataChangedError": BAD_INPUT,
    "orchestrator.study.growth:SpecChangedError": BAD_INPUT,
    "plugins.registry:DuplicatePluginError": BAD_INPUT,
    "plugins.registry:UnknownPluginError": BAD_INPUT,
    "trainers.champion:ModelError": BAD_INPUT,
    "trainers.exporting:ExportError": BAD_INPUT,
    "trainers.data.listing:DataError": BAD_INPUT,
    "trainers.training.checkpoints:CheckpointError": BAD_INPUT,
    "trainers.weights.errors:WeightsError": BAD_INPUT,
    "orchestrator.engines.interfaces:EngineUnavailableError": FAILED,
    "orchestrator.store.errors:DatabaseUnavailableError": FAILED,
    "orchestrator.store.submission_rows:StudyActiveError": FAILED,
    "orchestrator.study.access:NoChampionError": FAILED,
    "orchestrator.study.access:StudyNotDeletedError": FAILED,
    "orchestrator.study.lock:StudyBusyError": FAILED,
    "orchestrator.study.report:ReportNotWrittenError": FAILED,
    "orchestrator.tracking.login:LoginError": BAD_INPUT,
    "orchestrator.tracking.mlflow_client:TrackingUnavailable": FAILED,
    "trainers.storage.object_store:ObjectStoreError": FAILED,
    "trainers.training.checkpoints:CheckpointWriteError": FAILED,
}
"""Exit status by module and class of the exception."""

_ABOUT_A_FILE = frozenset(
    {
        "orchestrator.service.submitting:SubmissionError",
        "orchestrator.spec.truth_error:TruthError",
        "orchestrator.spec.warm_start:WarmStartError",
        "orchestrator.study.driver:DataChangedError",
        "orchestrator.study.growth:SpecChangedError",
        "trainers.champion:ModelError",
        "trainers.data.listing:DataError",
        "trainers.training.checkpoints:CheckpointError",
        "trainers.training.checkpoints:CheckpointWriteError",
        "trainers.weights.errors:WeightsError",
    }
)
"""Exceptions whose messages do not name the command's file."""


_OF_THE_SYSTEM = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    }
)
_NO_MEMORY = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory")
_SHOWN = 200


def status_of(error: BaseException) -> int | None:
    """The exit status of an exception that a user can fix; `None` for other exceptions."""
    return next((STATUS[name] for name in _names(error) if name in STATUS), None)


@contextmanager
def exit_on_error(file: object = None) -> Iterator[None]:
    """Turn an exception of `STATUS` into one line on stderr and its exit status.

    Args:
        file: The command's file; it prefixes messages that do not name it.
    """
    try:
        yield
    except Exception as error:
        status = status_of(error)
        if status is None:
            raise
        is_about_file = not _ABOUT_A_FILE.isdisjoint(_names(error))
        mistakes = error.lines if isinstance(error, SpecError) else [str(error)]
        fail(*(f"{file}: {one}" if file and is_about_file else one for one in mistakes), status=status)


@contextmanager
def exit_without_resources() -> Iterator[None]:
    """Turn an error of paths, disks or memory, which a user can fix, into one line on stderr and an exit status."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        where = f"{str(error.filename)[:_SHOWN]} must be usable, but: " if error.filename else ""
        fail(f"{where}{error.strerror}. Correct the path, its permissions or the limit, then try again.", status=FAILED)
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        fail(
            "this command needs more memory than it may use. Raise the limit (`ulimit -v`).",
            status=FAILED,
        )


def _names(error: BaseException) -> list[str]:
    """Module and name of an exception's class and its bases, the class first."""
    return [f"{kind.__module__}:{kind.__qualname__}" for kind in type(error).__mro__]
