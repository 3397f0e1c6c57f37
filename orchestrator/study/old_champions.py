"""Champions that older versions registered in MLflow, which could not load them."""

import logging

from orchestrator.settings import Settings
from orchestrator.store.records import StudyRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import study_folder, tracker_of
from orchestrator.tracking.events import LogArtifact
from orchestrator.tracking.mlflow_client import TrackingRejected, TrackingUnavailable
from orchestrator.tracking.model_flavor import MODEL_CARD
from orchestrator.tracking.names import is_http, slug

_logger = logging.getLogger(__name__)
_ARTIFACT_PATH = "champion"
"""Folder in the artifacts of a promote stage's run; see `orchestrator.tracking.run_tree`."""


def incomplete_champions(study: StudyRecord, settings: Settings, store: Store) -> list[LogArtifact]:
    """Events that make the champions of a study MLflow models, if their files on this machine are none yet."""
    if is_http(settings.tracking_uri):
        return []
    events = []
    for stage in store.stages(study.id):
        key = f"{study.uid}/stage/{stage.name}"
        run_id = store.outbox(study.id).get(key) if stage.kind == "promote" and stage.state == "complete" else None
        if run_id is None:
            continue
        logged = settings.mlflow_root / slug(study.name) / run_id / "artifacts" / _ARTIFACT_PATH
        folder = study_folder(settings, study) / stage.result["folder"]
        if (logged / MODEL_CARD).is_file() and not (logged / "MLmodel").exists() and (folder / MODEL_CARD).is_file():
            events.append(LogArtifact(key=key, path=str(folder), artifact_path=_ARTIFACT_PATH))
    return events


def complete_champions(study: StudyRecord, settings: Settings, store: Store, events: list[LogArtifact]) -> None:
    """Deliver `incomplete_champions`. The caller holds the study."""
    try:
        tracker_of(study, settings, store).deliver(events)
    except (TrackingUnavailable, TrackingRejected) as error:
        _logger.warning("MLflow cannot load the champion of %s: %s", study.name, error)
