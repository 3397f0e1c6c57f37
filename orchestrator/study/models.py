"""Finds a trained model by what a user types: a study's name, or the folder of a model."""

from pathlib import Path

from orchestrator.settings import Settings
from orchestrator.spec.model_names import CHAMPION_SUFFIX
from orchestrator.study.access import find_champion


def find_model_folder(model: str, settings: Settings) -> Path:
    """Folder of a model.

    Args:
        model: An existing folder, which takes precedence, or the name of a study, optionally followed by `@champion`.
        settings: Settings of this installation.

    Raises:
        UnknownStudyError: There is neither a folder nor a study of that name.
        NoChampionError: The study has no champion yet.
    """
    folder = Path(model)
    return folder if folder.is_dir() else Path(find_champion(model.removesuffix(CHAMPION_SUFFIX), settings)["folder"])
