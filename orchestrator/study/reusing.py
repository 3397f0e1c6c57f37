"""What a study takes from other studies and models. It is read before the study begins, and kept with each stage.

A stage therefore resumes in the same way even if the other study has changed or was deleted meanwhile.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from orchestrator.settings import Settings
from orchestrator.spec.model_names import champion_of, trial_named
from orchestrator.spec.problems import plain
from orchestrator.spec.study_file import StudySpec
from orchestrator.spec.warm_start import WarmStart, WarmStartError
from orchestrator.stages.retention import CUT
from orchestrator.stages.starting_weights import TEACHER_INDEX, has_stored_weights, store_weights, stored_weights
from orchestrator.stages.train import train_conditions
from orchestrator.stages.train_result import ranking_by, sort_trials
from orchestrator.stages.train_spec import TrainStage
from orchestrator.stages.warm_start import PastTrial, WarmStartRecord, has_stored_warm_start, store_warm_start
from orchestrator.store.records import StudyRecord, TrialRecord
from orchestrator.study.access import fetched_study_folder, find_champion, find_study, open_existing
from plugins.metrics.deciding import DecidingMetric
from trainers.config import Configuration, InitialWeights
from trainers.weights.errors import WeightsError
from trainers.yaml_source import read_yaml

if TYPE_CHECKING:
    from trainers.data.images import ImageData
    from trainers.weights.reading import SourceWeights


class ReusedInputs(NamedTuple):
    """What the stages of a study take from elsewhere, by stage name."""

    weights: dict[str, "SourceWeights"]
    teachers: dict[str, "SourceWeights"]
    warm_starts: dict[str, WarmStartRecord]


def read_reused(spec: StudySpec, study: StudyRecord | None, settings: Settings) -> ReusedInputs:
    """Read what is not kept with the study yet; nothing is written.

    Args:
        spec: The study.
        study: Its record, if it has begun.
        settings: Settings of this installation.

    Raises:
        WeightsError: Weights cannot be used.
        WarmStartError: A warm start cannot be used.
        orchestrator.study.access.UnknownStudyError: A study that is named does not exist.
        orchestrator.study.access.NoChampionError: It has no champion yet.
    """
    folder = None if study is None else fetched_study_folder(settings, study)
    weights: dict[str, SourceWeights] = {}
    teachers: dict[str, SourceWeights] = {}
    warm_starts: dict[str, WarmStartRecord] = {}
    for stage in spec.stages:
        if not isinstance(stage, TrainStage):
            continue
        own = None if folder is None else folder / stage.name
        if stage.weights is not None and not (own and has_stored_weights(own)):
            weights[stage.name] = read_named_weights(stage.weights, settings, own_study=spec.study)
        is_elsewhere = stage.teacher is not None and trial_named(stage.teacher) is None
        if is_elsewhere and not (own and has_stored_weights(own, TEACHER_INDEX)):
            teachers[stage.name] = read_teacher(stage.teacher or "", settings, own_study=spec.study)
        if stage.warm_start is not None and not (own and has_stored_warm_start(own)):
            warm_starts[stage.name] = read_warm_start(stage.warm_start, settings, own_study=spec.study)
    return ReusedInputs(weights, teachers, warm_starts)


def store_reused(inputs: ReusedInputs, folder: Path) -> None:
    """Keep inputs with the stages of a study.

    Args:
        inputs: The inputs.
        folder: Folder of the study.
    """
    for stage, weights in inputs.weights.items():
        store_weights(folder / stage, weights)
    for stage, teacher in inputs.teachers.items():
        store_weights(folder / stage, teacher, TEACHER_INDEX)
    for stage, record in inputs.warm_starts.items():
        store_warm_start(folder / stage, record)


def read_named_weights(source: str, settings: Settings, *, own_study: str | None = None) -> "SourceWeights":
    """Read weights that a user names.

    Args:
        source: `STUDY@champion`, or a path.
        settings: Settings of this installation.
        own_study: The study that starts from them.

    Raises:
        WeightsError: The weights cannot be used.
        orchestrator.study.access.UnknownStudyError: The study does not exist.
        orchestrator.study.access.NoChampionError: The study has no champion yet.
    """
    from trainers.weights.reading import read_weights  # imports torch

    name = champion_of(source)
    if name is None:
        return read_weights(Path(source), source=source)
    if name == own_study:
        raise WeightsError(
            f"weights {source}: must be those of another study, but this is the study itself, which has no champion "
            "before it ends. Name another one."
        )
    return read_weights(Path(find_champion(name, settings)["folder"]), source=source)


def read_teacher(source: str, settings: Settings, *, own_study: str | None = None) -> "SourceWeights":
    """Read the trained model that a user names as teacher; arguments and errors are those of `read_named_weights`."""
    try:
        found = read_named_weights(source, settings, own_study=own_study)
    except WeightsError as error:
        raise WeightsError(f"teacher: {error}") from error
    if found.topology is None or found.task is None or not found.mean:
        raise WeightsError(
            f"teacher {source}: must be a whole model, but only weights were found: topology, classes or normalisation "
            "are unknown. Name a model folder or STUDY@champion."
        )
    return found


def read_warm_start(source: WarmStart, settings: Settings, *, own_study: str) -> WarmStartRecord:
    """Read what a stage is warm-started from.

    Args:
        source: What the study file names.
        settings: Settings of this installation.
        own_study: The study that is warm-started.

    Raises:
        WarmStartError: The source has no trained configuration that can be read.
        orchestrator.study.access.UnknownStudyError: The study does not exist.
        orchestrator.study.access.NoChampionError: The study has no champion yet.
    """
    if source.study is not None:
        if source.study == own_study:
            raise WarmStartError(
                f"warm_start: `study` must name another study, but {source.study!r} is the study itself. To add trials "
                "to it, raise its `num_trials`."
            )
        return _of_study(source.study, source.top, settings)
    configuration = _configuration(source, settings)
    only = PastTrial(label=source.origin, topology=configuration.topology, recipe=configuration.recipe)
    return WarmStartRecord(origin=source.origin, first=(only,))


def _of_study(name: str, top: int, settings: Settings) -> WarmStartRecord:
    """The best trials and the results of a study's last train stage that has any.

    Results of trainings that a scheduler or a budget has ended early are left out: they are those of fewer epochs.
    """
    study = find_study(name, settings)
    try:
        spec = StudySpec.model_validate(study.spec)
    except ValidationError as error:
        raise WarmStartError(
            f"warm_start: study {name!r} must be readable by this version, but its file is from another one. "
            "Warm-start from its champion instead: {model: NAME@champion}."
        ) from error
    with open_existing(settings) as store:
        for record in reversed(store.stages(study.id) if store else []):
            stage = spec.stages[record.position]
            trials = [trial for trial in store.trials(record.id) if trial.is_usable] if store else []
            if not isinstance(stage, TrainStage) or not trials:
                continue

            def past(trial: TrialRecord, stage: TrainStage = stage) -> PastTrial:
                return PastTrial(
                    label=f"{name}, {stage.name}, trial {trial.number}",
                    topology=str(trial.point["topology"]),
                    recipe=stage.recipe_space.decode(trial.point),
                    metrics=trial.metrics,
                )

            objective = ranking_by(DecidingMetric.of(spec.metric[0]), stage)
            folder = fetched_study_folder(settings, study) / stage.name
            weights = stage.weights
            if weights is not None and has_stored_weights(folder):
                weights = stored_weights(folder).sha256
            teacher = None
            if stage.teacher is not None and has_stored_weights(folder, TEACHER_INDEX):
                teacher = stored_weights(folder, TEACHER_INDEX).sha256
            return WarmStartRecord(
                origin=f"study {name}",
                first=tuple(past(trial) for trial in sort_trials(trials, (objective,))[:top]),
                results=tuple(past(trial) for trial in trials if not {"scheduler", CUT} & trial.details.keys()),
                conditions=train_conditions(spec.data, study.data_digest, stage, weights, teacher),
            )
    raise WarmStartError(
        f"warm_start: study {name!r} must have a trained model, but has none yet. See: vitsearch status {name}"
    )


def _configuration(source: WarmStart, settings: Settings) -> Configuration:
    """The configuration of a model or a file."""
    name = None if source.model is None else champion_of(source.model)
    try:
        if name is not None:
            return Configuration.model_validate(find_champion(name, settings)["configuration"])
        if source.file is not None:
            return Configuration.model_validate(read_yaml(source.file).data)
        return Configuration.model_validate(read_yaml(Path(str(source.model)) / "model.yaml").data["configuration"])
    except (ValidationError, KeyError) as error:
        reason = plain(error) if isinstance(error, ValidationError) else "it has no `configuration`"
        raise WarmStartError(
            f"warm_start: {source.origin} must be a configuration that this version reads, but: {reason} Print it "
            "again with `vitsearch best`."
        ) from error


def start_from_weights(
    configuration: Configuration, data: "ImageData", folder: Path, settings: Settings
) -> tuple[Configuration, str]:
    """Prepare the weights that a configuration starts from for its training.

    Args:
        configuration: A configuration with `weights`.
        data: Its images.
        folder: Receives a copy of the weights, unless the configuration already names one.
        settings: Settings of this installation.

    Returns:
        The configuration with readable weights, and what the model takes from them, in words.

    Raises:
        WeightsError: The weights cannot be used, or are not those that the configuration was trained with.
        orchestrator.study.access.UnknownStudyError: The study that is named does not exist.
        orchestrator.study.access.NoChampionError: It has no champion yet.
    """
    from trainers.weights.fitting import plan_weights
    from trainers.weights.prepared import read_prepared, write_prepared

    weights = configuration.weights
    assert weights is not None
    if weights.file is None or not weights.file.is_file():
        found = read_named_weights(weights.source, settings)
        if weights.sha256 not in (None, found.sha256):
            raise WeightsError(
                f"weights {weights.source}: must have the sha256 {weights.sha256} of the configuration, but has "
                f"{found.sha256}: they have changed since. Restore them, or remove `sha256` to start from the new ones."
            )
        weights = write_prepared(folder, found)
    source = read_prepared(weights)
    fit = plan_weights(source, configuration.topology, data.task, data.class_names)
    if fit.reason is not None:
        raise WeightsError(
            f"weights {weights.source}: must fit {configuration.topology}, but {fit.reason}. Name weights of a model "
            "of the same space that is at least as large."
        )
    left = f"; ignored: {source.ignored_text}" if source.ignored else ""
    return configuration.model_copy(update={"weights": weights}), f"weights {weights.source}: {fit.text}{left}"


def with_teacher(configuration: Configuration, folder: Path, settings: Settings) -> Configuration:
    """Prepare the teacher of a configuration for its training.

    Args:
        configuration: A configuration with `teacher`.
        folder: Receives a copy of its weights, unless the configuration already names one.
        settings: Settings of this installation.

    Raises:
        WeightsError: The teacher cannot be read, or is not the one that the configuration was trained with.
        orchestrator.study.access.UnknownStudyError: The study that is named does not exist.
        orchestrator.study.access.NoChampionError: It has no champion yet.
    """
    from trainers.weights.prepared import write_prepared

    teacher = configuration.teacher
    assert teacher is not None
    if teacher.file is not None and teacher.file.is_file():
        return configuration
    found = _kept_teacher(teacher, settings) or read_teacher(teacher.source, settings)
    if teacher.sha256 not in (None, found.sha256):
        raise WeightsError(
            f"teacher {teacher.source}: must have the sha256 {teacher.sha256} of the configuration, but has "
            f"{found.sha256}: it has changed since. Restore it, or remove `sha256` to learn from the new one."
        )
    return configuration.model_copy(update={"teacher": write_prepared(folder, found)})


def _kept_teacher(teacher: InitialWeights, settings: Settings) -> "SourceWeights | None":
    """A trial of a study that taught other trials of it, from the copy in the folder of their stage.

    Raises:
        WeightsError: There is no copy of these weights.
        orchestrator.study.access.UnknownStudyError: The study does not exist.
    """
    from trainers.weights.prepared import read_prepared

    named = trial_named(teacher.source)
    if named is None:
        return None
    folder = None if named.study is None else fetched_study_folder(settings, find_study(named.study, settings))
    for index in sorted(folder.glob(f"*/{TEACHER_INDEX}")) if folder is not None else ():
        kept = stored_weights(index.parent, TEACHER_INDEX)
        if kept.source == teacher.source and teacher.sha256 in (None, kept.sha256):
            return read_prepared(kept)
    raise WeightsError(
        f"teacher {teacher.source}: must be a trial that taught in its study, whose folder has a copy of the weights, "
        "but there is none. Name a model folder or STUDY@champion."
    )
