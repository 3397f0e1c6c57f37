"""Finds a trained model by what a user types: a study's name, or the folder of a model."""

from pathlib import Path

from orchestrator.settings import Settings
from orchestrator.spec.model_names import CHAMPION_SUFFIX
from orchestrator.study.access import StudyNotBegunError, UnknownStudyError, find_champion

MODEL_FILE = "model.yaml"
"""As `trainers.champion` writes it, which imports torch."""


def find_model_folder(model: str, settings: Settings) -> Path:
    """Folder of a model.

    Args:
        model: A folder with a model, which takes precedence, or a study's name, optionally followed by `@champion`.
            Images are often in a folder of the study's name, which therefore does not hide the study.
        settings: Settings of this installation.

    Raises:
        UnknownStudyError: There is neither a folder nor a study of that name.
        NoChampionError: The study has no champion yet.
    """
    folder = Path(model)
    if (folder / MODEL_FILE).is_file():
        return folder
    try:
        return Path(find_champion(model.removesuffix(CHAMPION_SUFFIX), settings)["folder"])
    except StudyNotBegunError:
        raise
    except UnknownStudyError:
        if folder.is_dir():
            return folder  # reading it tells what it lacks
        raise
