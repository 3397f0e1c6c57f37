"""How files name existing models: `STUDY@champion`, or the path of a model folder or a file with weights."""

from pathlib import Path
from typing import Any

from orchestrator.spec.yaml_source import absolute_path

CHAMPION_SUFFIX = "@champion"
"""Follows a study's name, as in MLflow's addresses of models."""


def champion_of(text: str) -> str | None:
    """The study that `STUDY@champion` names; `None` if the text is a path."""
    name = text.removesuffix(CHAMPION_SUFFIX)
    return name if name != text and "/" not in name else None


def absolute_model(text: str, folder: Path) -> str:
    """The name of a model with its path, if it is one, resolved relative to a folder."""
    return text if not text or champion_of(text) else absolute_path(text, folder)


def with_absolute_weights(raw: Any, folder: Path) -> Any:
    """The unchecked `weights` of a file, a name or a block with a `source`, with an absolute path."""
    if isinstance(raw, str):
        return absolute_model(raw, folder)
    if isinstance(raw, dict) and isinstance(raw.get("source"), str):
        return {**raw, "source": absolute_model(raw["source"], folder)}
    return raw
