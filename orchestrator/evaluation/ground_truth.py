"""Accuracies that scores are compared with, from trained trials or from a table, through one interface."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from orchestrator.spec.study_file import CorrelateStage, ScreenStage, StudySpec, TrainStage, Truth
from orchestrator.spec.truth_table import TruthError, file_digest, read_truth_table
from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from plugins.registry import nearest_name
from search_spaces.base import ImageTask
from trainers.config import DataConfig

if TYPE_CHECKING:
    from trainers.data.images import ImageData

TRAINED_TARGET = "val_accuracy"


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """What some topologies reached, and the images that their scores are to be computed on."""

    kind: Literal["trials", "table"]
    name: str
    """Of the study or of the table's file."""
    source: str
    """The study's name, or the table's path."""
    target: str
    """Such as `val_accuracy` or `c100_kd_acc`."""
    unit: Literal["fraction", "table"]
    """Of the accuracies: `fraction` between 0 and 1, or the table's own."""
    topologies: tuple[str, ...]
    """`space:text`, all different."""
    accuracies: tuple[float, ...]
    """One per topology."""
    data: DataConfig
    task: ImageTask
    """What the networks are built for; it may have more classes than the data."""
    digest: str
    """Of what it was read from, in hex."""
    curves: tuple[tuple[float, ...], ...] = ()
    """Validation accuracy after each epoch, of every trial that ran to its end; empty for a table."""

    @property
    def title(self) -> str:
        """For people: `c100_kd_acc of pit-cifar100`."""
        return f"{self.target} of {self.name}"


def load_truth(choice: Truth, *, data: DataConfig, store: Store | None) -> GroundTruth:
    """The accuracies that a study file names.

    Args:
        choice: A table or a study.
        data: The images that a table's topologies are scored on; a study brings its own.
        store: Where studies are looked up; `None` where there are none yet.

    Raises:
        TruthError: It cannot be read, or does not fit the images.
        trainers.data.sources.DataError: The images cannot be read.
    """
    if choice.study is not None:
        return _study_truth(choice.study, store)
    if choice.table is None or choice.space is None or choice.target is None:
        raise TruthError("must have a `table` with `space` and `target`, or a `study`, but has neither.")
    from trainers.data.images import load_images  # imports torch

    path, images = Path(choice.table), load_images(data)
    table = read_truth_table(path, space=choice.space, target=choice.target)
    num_classes = choice.num_classes or images.task.num_classes
    if num_classes < images.task.num_classes:
        raise TruthError(
            f"networks must have at least the {images.task.num_classes} classes of the images, but num_classes is "
            f"{num_classes}. Raise it, or use other images.",
            key="num_classes",
        )
    task = images.task.model_copy(update={"num_classes": num_classes})
    table.check(task)
    return GroundTruth(
        kind="table",
        name=path.stem,
        source=str(path),
        target=choice.target,
        unit="table",
        topologies=tuple(row.topology.id for row in table.rows),
        accuracies=tuple(row.value for row in table.rows),
        data=data,
        task=task,
        digest=file_digest(path),
    )


def trained_truth(store: Store, study: StudyRecord, stage: StageRecord, *, images: "ImageData") -> GroundTruth:
    """The accuracies of a finished train stage: one trial per candidate, all with the base recipe.

    Sampled recipes are left out, since they would blur which topology is better; the curves are those of all trials.

    Raises:
        TruthError: No candidate was trained to its end.
    """
    spec = StudySpec.model_validate(study.spec)
    train = spec.stages[stage.position]
    assert isinstance(train, TrainStage)
    trials = [trial for trial in store.trials(stage.id) if trial.is_usable]
    base = _base_trials(trials, num_candidates=len(stage.result["candidates"]))
    if not base:
        raise TruthError(
            f"stage {stage.name!r} of study {study.name!r} must have trained a topology with the base recipe to its "
            "end, but it has none.",
            key="study",
        )
    accuracies = tuple(trial.metrics[TRAINED_TARGET] for trial in base)
    topologies = tuple(str(trial.point["topology"]) for trial in base)
    reports = [store.reports(trial.id) for trial in trials]
    return GroundTruth(
        kind="trials",
        name=study.name,
        source=study.name,
        target=TRAINED_TARGET,
        unit="fraction",
        topologies=topologies,
        accuracies=accuracies,
        data=spec.data,
        task=images.task,
        digest=_digest([topologies, accuracies]),
        curves=tuple(tuple(report.val_accuracy for report in curve) for curve in reports if len(curve) == train.epochs),
    )


def data_fingerprint(spec: StudySpec, images: "ImageData", store: Store | None) -> str:
    """Digest of everything that a study reads: its images, and the tables and studies that it compares with.

    Raises:
        TruthError: One of them is missing.
    """
    truths = [truth for stage in spec.stages for truth in truths_of(stage)]
    if not truths:
        return images.digest
    return _digest([images.digest, *(truth_fingerprint(truth, store) for truth in truths)])


def truth_fingerprint(choice: Truth, store: Store | None) -> str:
    """Changes when a table's content does, or when a study is another one of the same name.

    Raises:
        TruthError: It is missing.
    """
    if choice.study is not None:
        return find_truth_study(choice.study, store)[1].uid
    return file_digest(Path(choice.table or ""))


def truths_of(stage: object) -> Iterator[Truth]:
    """The truths that a stage names: what it compares with first, then what it carries its combination to."""
    if isinstance(stage, CorrelateStage):
        if stage.truth is not None:
            yield stage.truth
        yield from stage.transfer


def find_truth_study(name: str, store: Store | None) -> tuple[Store, StudyRecord]:
    """The study of that name.

    Raises:
        TruthError: There is none.
    """
    study = store.find_study(name) if store else None
    if store is None or study is None:
        names = [one.name for one in store.list_studies()] if store else []
        nearest = nearest_name(name, names)
        hint = f" Did you mean {nearest!r}?" if nearest else " `vitsearch list` shows all."
        raise TruthError(f"must be the name of a study, but there is no study {name!r}.{hint}", key="study")
    return store, study


def last_screen(spec: StudySpec, before: int | None = None) -> ScreenStage | None:
    """The last screen of a study, or the last one before a position."""
    stages = spec.stages[:before]
    return next((stage for stage in reversed(stages) if isinstance(stage, ScreenStage)), None)


def read_spec(study: StudyRecord) -> StudySpec:
    """The spec that a study was made from.

    Raises:
        TruthError: It was made by a version whose study files were different.
    """
    try:
        return StudySpec.model_validate(study.spec)
    except ValidationError:
        raise TruthError(
            f"study {study.name!r} must be one of this version, but its file has keys of another version. "
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
            f"the images of study {name!r} must be the ones that it was trained on, but those of {spec.data.source} "
            "have changed since. Restore them.",
            key="study",
        )
    return trained_truth(store, study, finished[-1], images=images)


def _base_trials(trials: Sequence[TrialRecord], *, num_candidates: int) -> list[TrialRecord]:
    """The first trials of a train stage are its candidates with the base recipe; one that a scheduler cut is none."""
    return [trial for trial in trials if trial.number < num_candidates and "scheduler" not in trial.details]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
