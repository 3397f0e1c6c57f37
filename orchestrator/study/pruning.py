"""Frees the disk space of finished studies: drops files that no champion needs."""

import filecmp
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from orchestrator.settings import Settings
from orchestrator.store.records import StudyRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import (
    find_champion,
    open_existing,
    study_folder,
    study_places,
)
from orchestrator.study.lock import StudyBusyError, hold_study
from orchestrator.study.sizes import size_of
from orchestrator.study.states import with_actual_state
from orchestrator.tracking.local_files import replace_by_link
from orchestrator.tracking.names import is_http, slug
from trainers.storage.addresses import address_of
from trainers.storage.artifacts import artifacts_at
from trainers.storage.interface import MANIFEST

_WEIGHTS = "model.safetensors"
_CHAMPION, _CHECKPOINT = "champion", "checkpoint"
"""Folders in the artifacts of MLflow's runs; see `orchestrator.tracking.run_tree`."""


class Pruned(NamedTuple):
    """What was done, or would be done, with the files of one study."""

    study: str
    num_bytes_before: int
    num_bytes_freed: int
    kept_because: str | None
    """Why nothing was dropped; `None` if the study was pruned."""


def prune_study(study: StudyRecord, settings: Settings, *, dry_run: bool = False) -> Pruned:
    """Drop the checkpoints of a complete study with a champion, and scratch files, also where MLflow shows them.

    The champion, the plots and all results are kept. Files that MLflow holds a second time become hard links, if the
    file system has these. What a tracking server keeps is left alone.

    Args:
        study: The study.
        settings: Settings of this installation.
        dry_run: Whether to compute the sizes only.
    """
    with open_existing(settings) as store:
        if store is None:
            return Pruned(study.name, 0, 0, "its database has disappeared")
        before = size_of(study_places(settings, study, store))
        reason = _reason_to_keep(with_actual_state(study, settings, store, None), store, settings)
        if reason is not None:
            return Pruned(study.name, before, 0, reason)
        if dry_run:
            return Pruned(study.name, before, _excess(study, settings, store), None)
        try:
            with hold_study(study.name, settings):
                _drop(study, settings, store)
        except StudyBusyError:
            return Pruned(study.name, before, 0, "it is running")
        return Pruned(study.name, before, before - size_of(study_places(settings, study, store)), None)


def _reason_to_keep(study: StudyRecord, store: Store, settings: Settings) -> str | None:
    if study.state != "complete":
        return f"it is {study.state}, and can be resumed" if study.state != "running" else "it is running"
    if not any(stage.kind == "promote" and stage.state == "complete" for stage in store.stages(study.id)):
        return "it has no champion"
    champion = Path(find_champion(study.name, settings)["folder"]) / _WEIGHTS
    if not artifacts_at(champion).has(champion):
        return "the folder of its champion is missing"
    if settings.tracking and store.outbox(study.id).count_owed():
        return "MLflow has not received all of it; `vitsearch run` of its file sends the rest"
    return None


def _excess(study: StudyRecord, settings: Settings, store: Store) -> int:
    """Bytes that `_drop` would free."""
    all_of_it, dropped = study_places(settings, study, store), _droppable(study, settings, store)
    twice = [copy for copy, _ in _second_copies(study, settings, store)]
    if address_of(settings.artifact_root) is not None:  # objects have one name, and MLflow's files another place
        return size_of([*dropped, *twice])
    kept = _kept_files(all_of_it, {*dropped, *twice})
    return size_of(all_of_it) - size_of(kept)


def _kept_files(places: list[Path], dropped: set[Path]) -> list[Path]:
    files = (path for place in places for path in place.rglob("*") if not path.is_dir())
    return [path for path in files if dropped.isdisjoint([path, *path.parents])]


def _drop(study: StudyRecord, settings: Settings, store: Store) -> None:
    for place in _droppable(study, settings, store):
        _remove(place)
    for stage in store.stages(study.id):
        for trial in store.trials(stage.id):
            store.forget_checkpoints(trial.id, but=())
    for copy, original in _second_copies(study, settings, store):
        replace_by_link(copy, original)


def _droppable(study: StudyRecord, settings: Settings, store: Store) -> list[Path]:
    """Checkpoints, Ray's scratch folder, and the copies of checkpoints that MLflow has on this machine."""
    folder = study_folder(settings, study)
    found = artifacts_at(folder).committed_below(folder, prefix="epoch-", manifest=MANIFEST)
    rest = [folder / "ray", *_mlflow_folders(study, settings, store, _CHECKPOINT)]
    return [*found, *(path for path in rest if path.exists())]


def _second_copies(study: StudyRecord, settings: Settings, store: Store) -> list[tuple[Path, Path]]:
    """Files of the champion that MLflow has a second time, each with the original."""
    champion = Path(find_champion(study.name, settings)["folder"])
    folders = _mlflow_folders(study, settings, store, _CHAMPION)
    pairs = [(folder / _WEIGHTS, champion / _WEIGHTS) for folder in folders]
    return [(copy, original) for copy, original in pairs if _are_copies(copy, original)]


def _are_copies(file: Path, other: Path) -> bool:
    if not (file.is_file() and other.is_file()) or file.samefile(other):
        return False
    return file.stat().st_dev == other.stat().st_dev and filecmp.cmp(file, other, shallow=False)


def _mlflow_folders(study: StudyRecord, settings: Settings, store: Store, name: str) -> list[Path]:
    """The artifact folders of that name of a study's runs, if they are on this machine."""
    if is_http(settings.tracking_uri):
        return []
    folder = settings.mlflow_root / slug(study.name)
    return [folder / run_id / "artifacts" / name for run_id in store.outbox(study.id).run_ids()]


def _remove(place: Path) -> None:
    """Rename before deleting, so that a partly deleted folder is never taken for a checkpoint."""
    if address_of(place) is not None:
        artifacts_at(place).remove_folder(place, manifest=MANIFEST)
        return
    trash = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    place.replace(trash / place.name)
    shutil.rmtree(trash, ignore_errors=True)
