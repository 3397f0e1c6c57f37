"""Loads models by the name of a study or from a folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.quiet import quiet_libraries
from orchestrator.study.models import find_model_folder
from vitsearch._study_files import settings_of

if TYPE_CHECKING:
    import torch

    from trainers.champion import Predictor


def load_model(
    model: str | os.PathLike[str], *, home: Path | str | None = None, device: "torch.device | str | None" = None
) -> "Predictor":
    """A trained model, ready to predict.

    Args:
        model: A model's folder (`champion.folder`, or what `vitsearch train` wrote), or the name of a study, whose
            champion is loaded, also written `NAME@champion`. A folder of that name takes precedence; a path with a
            separator is always a folder.
        home: Where studies are kept, by default `VITSEARCH_HOME`.
        device: Where it computes, such as `"cpu"`; by default a GPU if there is one.

    Raises:
        UnknownStudyError: There is neither a folder nor a study of that name.
        NoChampionError: The study has no champion yet.
        ModelError: The folder is not a model, or is damaged.
    """
    quiet_libraries()
    folder = Path(model)
    if isinstance(model, str) and len(folder.parts) == 1:
        folder = find_model_folder(model, settings_of(home))
    import torch

    from trainers.champion import load_model as load_folder

    return load_folder(folder, device=None if device is None else torch.device(device))
