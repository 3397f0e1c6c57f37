"""External accuracies that a study's stages read, from tables or from trained studies."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from orchestrator.engines.ray.generations import COPY_STEPS
from orchestrator.evaluation.ground_truth import GroundTruth, load_table_truth
from orchestrator.evaluation.unequal_epochs import Training, compare_trainings
from orchestrator.spec.stage_model import latest
from orchestrator.spec.study_file import StudySpec
from orchestrator.spec.truth_error import TruthError
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import file_digest
from orchestrator.stages.kind import FinishedStage
from orchestrator.stages.screen import ScreenStage
from orchestrator.stages.train import TRAIN
from orchestrator.stages.train_result import TrainedTrial, TrainResult
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.store.study_names import nearest_study
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from trainers.config import DataConfig, EpochReport

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
    """The accuracies of a finished train stage: one per candidate, all with the base recipe.

    If a candidate was trained with several seeds, its accuracy is the mean. If the study decides by another metric, its
    values take their place, negative if less of it is better.

    If a scheduler or a budget ended trainings early, topologies are compared at the largest epoch that at least half of
    them (and at least four) have reached. The more trainings have gone on, the later this epoch is. If it is the last
    one, the results are compared.

    Trials with sampled recipes are excluded, because their accuracies also depend on the recipe. The curves are those
    of all trials.

    Raises:
        TruthError: No candidate was trained with the base recipe.
    """
    records, metric, num_epochs = store.trials(train.record.id), train.result.metric, train.spec.epochs
    results = {trial.trial: trial for trial in train.result.trials}
    curves = {record.number: store.reports(record.id) for record in records if record.number in results}
    base = [record for record in records if record.number in results and _has_base_recipe(record, records[0])]
    if not base:
        raise TruthError(
            f"stage {train.record.name!r} of study {study.name!r} must have trained a topology with the base recipe, "
            f"but it has none. See: vitsearch status {study.name}",
            key="study",
        )
    compared = compare_trainings(
        [_training(record, results[record.number], curves[record.number], metric) for record in base],
        num_epochs=num_epochs,
        by_best_epoch=train.spec.rank_by == "best",
    )
    topologies = tuple(compared.values)
    accuracies = tuple(sum(values) / len(values) for values in compared.values.values())
    counted = metric.choice.name == ACCURACY.choice.name
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
            for curve in curves.values()
            if len(curve) == num_epochs
        ),
        seeds=tuple(map(tuple, compared.values.values())),
        num_images=len(images.validation) if counted else None,
        epoch=compared.epoch,
        num_epochs=num_epochs,
        num_left_out=compared.num_left_out,
    )


def _has_base_recipe(trial: TrialRecord, first: TrialRecord) -> bool:
    """Whether a trial has the recipe of the first trial, and took no other over from a trial that it copied."""
    recipe, base = ({**one.point, "topology": None} for one in (trial, first))
    return recipe == base and COPY_STEPS not in trial.details


def _training(
    record: TrialRecord, trial: TrainedTrial, curve: Sequence[EpochReport], metric: DecidingMetric
) -> Training:
    result = trial.val_accuracy if trial.value is None else trial.value
    return Training(
        topology=str(record.point["topology"]),
        value=metric.score(result) if trial.has_base_recipe else None,
        curve=[metric.score(report.value(metric)) for report in curve],
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
        nearest = nearest_study(name, names)
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
