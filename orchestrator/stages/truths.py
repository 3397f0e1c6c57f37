"""External accuracies that a study's stages read, from tables or from trained studies."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from orchestrator.evaluation.ground_truth import GroundTruth, load_table_truth
from orchestrator.spec.stage_model import latest
from orchestrator.spec.study_file import StudySpec
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import TruthError, file_digest
from orchestrator.stages.kind import FinishedStage
from orchestrator.stages.screen import ScreenStage
from orchestrator.stages.train import TRAIN, TrainResult, TrainStage
from orchestrator.store.records import StudyRecord
from orchestrator.store.repository import Store
from plugins.registry import nearest_name
from trainers.config import DataConfig

if TYPE_CHECKING:
    from trainers.data.images import ImageData


TRAINED_TARGET = "val_accuracy"
"""What a study's trials are compared by, unless it names another metric."""


def load_truth(source: TruthSource, *, data: DataConfig, store: Store | None) -> GroundTruth:
    """Load the accuracies that a study file names.

    Args:
        source: A table or a study.
        data: The images on which a table's topologies are scored; a study has its own images.
        store: The store with the studies; `None` if there is none yet.

    Raises:
        TruthError: The source cannot be read, or does not fit the images.
        trainers.data.listing.DataError: The images cannot be read.
    """
    return load_table_truth(source, data=data) if source.study is None else _study_truth(source.study, store)


def trained_truth(
    store: Store, study: StudyRecord, train: FinishedStage[TrainStage, TrainResult], *, images: "ImageData"
) -> GroundTruth:
    """The accuracies of a finished train stage: one trial per candidate, all with the base recipe.

    If the study decides by another metric, its values take their place, negative if less of it is better.

    Trials with sampled recipes are excluded, because their accuracies also depend on the recipe. The curves are those
    of all trials.

    Raises:
        TruthError: No candidate was trained for all its epochs.
    """
    base = [trial for trial in train.result.trials if trial.has_base_recipe]
    if not base:
        raise TruthError(
            f"stage {train.record.name!r} of study {study.name!r} must have trained a topology with the base recipe "
            f"for all its epochs, but it has none. See: vitsearch status {study.name}",
            key="study",
        )
    metric = train.result.metric
    accuracies = tuple(metric.score(trial.val_accuracy if trial.value is None else trial.value) for trial in base)
    topologies = tuple(trial.topology for trial in base)
    usable = {trial.trial for trial in train.result.trials}
    curves = [store.reports(trial.id) for trial in store.trials(train.record.id) if trial.number in usable]
    return GroundTruth(
        kind="trials",
        name=study.name,
        source=study.name,
        target=metric.key if metric.direction == "maximize" else f"-{metric.key}",
        unit="fraction" if metric.is_fraction else "table",
        topologies=topologies,
        accuracies=accuracies,
        data=read_spec(study).data,
        task=images.task,
        digest=_digest([topologies, accuracies]),
        curves=tuple(
            tuple(metric.score(report.value(metric)) for report in curve)
            for curve in curves
            if len(curve) == train.spec.epochs
        ),
    )


def data_fingerprint(spec: StudySpec, images: "ImageData", store: Store | None) -> str:
    """Digest of everything that a study reads: its images, and the tables and studies to compare with.

    Raises:
        TruthError: A table or study is missing.
    """
    truths = [truth for stage in spec.stages for truth in stage.truths]
    if not truths:
        return images.digest
    return _digest([images.digest, *(truth_fingerprint(truth, store) for truth in truths)])


def truth_fingerprint(source: TruthSource, store: Store | None) -> str:
    """Fingerprint of a table's content, or of a study; a new study with the same name has a new fingerprint.

    Raises:
        TruthError: The table or study is missing.
    """
    if source.study is not None:
        return find_truth_study(source.study, store)[1].uid
    return file_digest(Path(source.table or ""))


def find_truth_study(name: str, store: Store | None) -> tuple[Store, StudyRecord]:
    """Find a study by name, and return it with its store.

    Raises:
        TruthError: There is no study of that name.
    """
    study = store.find_study(name) if store else None
    if store is None or study is None:
        names = [one.name for one in store.list_studies()] if store else []
        nearest = nearest_name(name, names)
        hint = f" Did you mean {nearest!r}?" if nearest else " `vitsearch list` shows all."
        raise TruthError(f"must be the name of a study, but there is no study {name!r}.{hint}", key="study")
    return store, study


def last_screen(spec: StudySpec, before: int | None = None) -> ScreenStage | None:
    """The last screen of a study, or the last screen before a position; `None` if there is none."""
    return latest(spec.stages[:before], ScreenStage)


def read_spec(study: StudyRecord) -> StudySpec:
    """The spec from which a study was created.

    Raises:
        TruthError: The study is from a version with incompatible study files.
    """
    try:
        return StudySpec.model_validate(study.spec)
    except ValidationError:
        raise TruthError(
            f"study {study.name!r} must be readable by this version, but its file is from another version. "
            "Run it again under another name.",
            key="study",
        ) from None


def _study_truth(name: str, store: Store | None) -> GroundTruth:
    from trainers.data.images import load_images  # imports torch

    store, study = find_truth_study(name, store)
    spec = read_spec(study)
    finished = [stage for stage in store.stages(study.id) if stage.kind == "train" and stage.state == "complete"]
    if not finished:
        raise TruthError(
            f"study {name!r} must have a finished train stage, but it has none. See: vitsearch status {name}",
            key="study",
        )
    images = load_images(spec.data)
    if data_fingerprint(spec, images, store) != study.data_digest:
        raise TruthError(
            f"the images of study {name!r} must be the same as when it was trained, but those of {spec.data.source} "
            "have changed since then. Restore them.",
            key="study",
        )
    record = finished[-1]
    train = spec.stages[record.position]
    assert isinstance(train, TrainStage)
    result = TRAIN.read(record, train, lambda: store.trials(record.id))
    return trained_truth(store, study, FinishedStage(record=record, spec=train, result=result), images=images)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
