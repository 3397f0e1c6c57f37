"""What a study takes from other studies and models. It is read before the study begins, and kept with each stage.

A stage therefore resumes in the same way even if the other study has changed or was deleted meanwhile.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.settings import Settings
from orchestrator.spec.model_names import champion_of
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.starting_weights import has_stored_weights, store_weights
from orchestrator.stages.train import TrainStage
from orchestrator.store.records import StudyRecord
from orchestrator.study.access import find_champion, study_folder
from trainers.config import Configuration
from trainers.weights.errors import WeightsError

if TYPE_CHECKING:
    from trainers.data.images import ImageData
    from trainers.weights.reading import SourceWeights


class ReusedInputs(NamedTuple):
    """What the stages of a study take from elsewhere, by stage name."""

    weights: dict[str, "SourceWeights"]


def read_reused(spec: StudySpec, study: StudyRecord | None, settings: Settings) -> ReusedInputs:
    """Read what is not kept with the study yet; nothing is written.

    Args:
        spec: The study.
        study: Its record, if it has begun.
        settings: Settings of this installation.

    Raises:
        WeightsError: Weights cannot be used.
        orchestrator.study.access.UnknownStudyError: A study that is named does not exist.
        orchestrator.study.access.NoChampionError: It has no champion yet.
    """
    folder = None if study is None else study_folder(settings, study)
    weights: dict[str, SourceWeights] = {}
    for stage in spec.stages:
        if not isinstance(stage, TrainStage) or stage.weights is None:
            continue
        if folder is None or not has_stored_weights(folder / stage.name):
            weights[stage.name] = read_named_weights(stage.weights, settings, own_study=spec.study)
    return ReusedInputs(weights)


def store_reused(inputs: ReusedInputs, folder: Path) -> None:
    """Keep inputs with the stages of a study.

    Args:
        inputs: The inputs.
        folder: Folder of the study.
    """
    for stage, weights in inputs.weights.items():
        store_weights(folder / stage, weights)


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
    left = f"; left aside: {', '.join(source.left_aside[:5])}" if source.left_aside else ""
    return configuration.model_copy(update={"weights": weights}), f"weights {weights.source}: {fit.text}{left}"
