"""Finding, showing and deleting studies. These functions raise our exceptions and never end the process."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.safe_text import masked_address
from orchestrator.settings import Settings, SettingsError
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.records import StudyRecord
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord, state_words
from orchestrator.store.study_files import folder_of_study, log_of_submission
from orchestrator.store.study_names import nearest_study
from orchestrator.study.lock import StudyBusyError, hold_study
from orchestrator.study.sizes import size_of
from orchestrator.study.states import state_before_begin, with_actual_state
from orchestrator.tracking.names import slug
from trainers.storage.addresses import address_of
from trainers.storage.artifacts import artifacts_at, fetched

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_client import Tracker


class UnknownStudyError(LookupError):
    """There is no study of a name.

    Attributes:
        name: The name.
        nearest: The name of a study with similar spelling, or `None`.
    """

    def __init__(self, name: str, home: Path | None, nearest: str | None, *, server: str | None = None) -> None:
        self.name, self.nearest = name, nearest
        where = "that you may see" if home is None else f"in {home}"
        hint = f" Did you mean {nearest!r}?" if nearest else "" if server else " `vitsearch list` shows all."
        if server:
            hint += (
                f" This command does not ask the service at {server}: run it on the machine of that service, or copy a "
                f"champion from there with: vitsearch download {name}"
            )
        super().__init__(f"there is no study {name!r} {where}.{hint}")


class StudyNotBegunError(UnknownStudyError):
    """A study was submitted, but its driver has not begun it.

    Attributes:
        submission: Its newest submission.
    """

    def __init__(self, submission: SubmissionRecord) -> None:
        self.submission = submission
        self.name, self.nearest = submission.name, None
        LookupError.__init__(
            self,
            f"study {submission.name!r} has no results yet: it {state_words(submission.state, submission.reason)}. "
            f"Follow it with: vitsearch watch {submission.name}",
        )


class NoChampionError(LookupError):
    """A study has no champion yet.

    Attributes:
        name: Name of the study.
        state: State of the study.
    """

    def __init__(self, name: str, state: str) -> None:
        self.name, self.state = name, state
        super().__init__(f"study {name!r} has no champion yet: it is {state}. See: vitsearch status {name}")


class StudyNotDeletedError(RuntimeError):
    """Nothing was deleted, because MLflow does not answer and its part of the study cannot be deleted."""


@contextmanager
def open_existing(settings: Settings) -> Iterator[Store | None]:
    """Open the store if it exists, otherwise yield `None`; nothing is created."""
    store = Store.find(settings.database_url, artifact_root=settings.artifact_root)
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def find_study(name: str, settings: Settings) -> StudyRecord:
    """The record of a study, with its actual state.

    Raises:
        UnknownStudyError: There is no study of that name.
    """
    with open_existing(settings) as store:
        study = store.find_study(name) if store else None
        names = [one.name for one in store.list_studies()] if store else []
        submission = store.queue().find_latest(name) if store else None
        if study is not None and store is not None:
            return with_actual_state(study, settings, store, submission)
    if submission is not None:
        raise StudyNotBegunError(submission)
    raise UnknownStudyError(name, settings.home, nearest_study(name, names), server=settings.server)


def find_summary(name: str, settings: Settings) -> dict[str, Any]:
    """The summary of a study, as printed by `vitsearch status --format json`.

    Raises:
        UnknownStudyError: There is no study of that name.
    """
    from orchestrator.reports.summary import study_summary

    study = find_study(name, settings)
    with open_existing(settings) as store:
        if store is None:
            raise database_gone(settings)
        return study_summary(store, study)


def find_trials(name: str, settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """The trials of a study as rows of `orchestrator.reports.trial_table`, and the names of its stages.

    Raises:
        UnknownStudyError: There is no study of that name.
    """
    from orchestrator.reports.trial_table import trial_rows

    study = find_study(name, settings)
    with open_existing(settings) as store:
        if store is None:
            raise database_gone(settings)
        stages = store.stages(study.id)
        return list(trial_rows(store, study, stages)), [stage.name for stage in stages]


def find_champion(name: str, settings: Settings) -> dict[str, Any]:
    """Result of a study's promote stage, with an absolute folder.

    Raises:
        UnknownStudyError: There is no study of that name.
        NoChampionError: The study has no champion yet.
    """
    summary = find_summary(name, settings)
    champion: dict[str, Any] | None = summary["champion"]
    if champion is None:
        raise NoChampionError(name, summary["state"])
    fetched(Path(champion["folder"]))
    return champion


def list_studies(settings: Settings) -> list[dict[str, Any]]:
    """All studies, newest first, as printed by `vitsearch list --format json`.

    The sizes of studies in an object store are left out, because a store would have to list all their objects.
    """
    from orchestrator.reports.summary import study_lines

    with open_existing(settings) as store:
        if store is None:
            return []
        studies, submitted = store.list_studies(), store.queue().newest()
        begun = {study.name for study in studies}
        actual = [with_actual_state(study, settings, store, submitted.get(study.name)) for study in studies]
        lines = study_lines(store, actual)
        if address_of(settings.artifact_root) is None:
            run_ids = store.pages().run_ids()
            for line, study in zip(lines, studies, strict=True):
                line["num_bytes"] = size_of(_places(settings, study, run_ids.get(study.uid, ())))
        return [*(_line_before_begin(one, store) for one in submitted.values() if one.name not in begun), *lines]


def _line_before_begin(submission: SubmissionRecord, store: Store) -> dict[str, Any]:
    """The data of a submitted study whose driver has not begun, for `vitsearch list`."""
    spec, _ = store.queue().spec_of(submission.uid)
    state, reason = state_before_begin(store, submission)
    return {
        "study": submission.name,
        "state": state,
        "reason": reason,
        "stages": len(spec["stages"]),
        "stages_done": 0,
        "test_accuracy": None,
        "updated_at": submission.created_at,
        "num_bytes": 0,
    }


def num_folders_without_rows(settings: Settings) -> int:
    """Number of folders of studies that the database does not know, because it was emptied or replaced."""
    folder = settings.artifact_root / "studies"
    if settings.artifact_root.parent != settings.home or not folder.is_dir():
        return 0  # other databases may share the folder
    with open_existing(settings) as store:
        known = {study_folder(settings, study).name for study in store.list_studies()} if store else set()
    return sum(one.is_dir() and one.name not in known for one in folder.iterdir())


def delete_study(study: StudyRecord, settings: Settings) -> bool:
    """Delete a study: rows, checkpoints and plots, its files in MLflow, and the models registered from it.

    Its MLflow experiment, without files, is moved to MLflow's trash.

    Returns:
        Whether MLflow keeps runs of the study, because tracking is off.

    Raises:
        orchestrator.study.lock.StudyBusyError: The study is running.
        StudyNotDeletedError: MLflow does not answer.
    """
    from orchestrator.tracking.events import DeleteExperiment
    from orchestrator.tracking.mlflow_client import TrackingUnavailable

    with _held_to_delete(study.name, settings), open_existing(settings) as store:
        if store is None:
            return False
        if store.queue().has_driver(study.name):
            raise StudyBusyError(study.name, is_to_be_deleted=True)
        keeps_runs = not settings.tracking and bool(store.outbox(study.id).run_ids())
        if settings.tracking:
            try:
                tracker_of(study, settings, store).deliver([DeleteExperiment(name=study.name)])
            except TrackingUnavailable as error:
                raise StudyNotDeletedError(
                    f"nothing was deleted of study {study.name!r}, because MLflow does not answer: {error}"
                ) from error
        places = study_places(settings, study, store) if settings.tracking else [study_folder(settings, study)]
        for place in places:
            artifacts_at(place).delete(place)
        with suppress(OSError):  # runs of another study that had this name are still there, or there were no files
            (settings.mlflow_root / slug(study.name)).rmdir()
        _delete_logs(store.delete_study(study.id), settings)
        return keeps_runs


@contextmanager
def _held_to_delete(name: str, settings: Settings) -> Iterator[None]:
    """Hold the lock of a study that is about to be deleted."""
    with ExitStack() as held:
        try:
            held.enter_context(hold_study(name, settings))
        except StudyBusyError:
            raise StudyBusyError(name, is_to_be_deleted=True) from None
        yield


def delete_submissions(name: str, settings: Settings) -> bool:
    """Delete the submissions of a study that never began, with their logs.

    Returns:
        Whether there were any; none are deleted if the study has begun.

    Raises:
        orchestrator.study.lock.StudyBusyError: Its driver is about to begin it.
    """
    with open_existing(settings) as store:
        if store is None or store.find_study(name) is not None:
            return False
        uids = store.queue().forget(name)
        if not uids and store.queue().has_driver(name):
            raise StudyBusyError(name, is_to_be_deleted=True)
        _delete_logs(uids, settings)
        return bool(uids)


def _delete_logs(uids: Sequence[str], settings: Settings) -> None:
    for uid in uids:
        log_of_submission(settings.local_root, uid).unlink(missing_ok=True)


def study_folder(settings: Settings, study: StudyRecord) -> Path:
    """Folder of a study's checkpoints, plots and champion."""
    return folder_of_study(settings.artifact_root, study.name, study.uid)


def fetched_study_folder(settings: Settings, study: StudyRecord) -> Path:
    """The same folder, with the current pictures and inputs of the stages as files on this machine."""
    return fetched(study_folder(settings, study), without=("trial-", "champion"))


def study_places(settings: Settings, study: StudyRecord, store: Store) -> list[Path]:
    """Folders of all files of a study on this machine, including those that MLflow shows."""
    return _places(settings, study, store.outbox(study.id).run_ids())


def _places(settings: Settings, study: StudyRecord, run_ids: Iterable[str]) -> list[Path]:
    folder = settings.mlflow_root / slug(study.name)
    return [study_folder(settings, study), *(folder / run_id for run_id in run_ids)]


def tracker_of(study: StudyRecord, settings: Settings, store: Store) -> "Tracker":
    """The tracker that delivers a study's events to MLflow."""
    from orchestrator.tracking.mlflow_client import Tracker

    return Tracker(settings.tracking_uri, settings.mlflow_root, store.outbox(study.id))


def make_home(settings: Settings) -> None:
    """Create the home folder if it does not exist.

    Raises:
        SettingsError: It cannot be created.
    """
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"VITSEARCH_HOME must be a writable folder, but got {settings.home}: {error.strerror}. Name another."
        ) from error


def database_gone(settings: Settings) -> DatabaseUnavailableError:
    """The error for a database that was there when the study was found. Its address is masked."""
    return DatabaseUnavailableError(
        f"the database {masked_address(settings.database_url)} must exist, but it has disappeared. Restore it."
    )
