"""Limits the paths in a study file to folders that an administrator has chosen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.spec.problems import Problem, found
from trainers.yaml_source import KeyPath, expanded_path


def root_problems(data: Mapping[str, Any], roots: Sequence[Path]) -> Iterator[Problem]:
    """Yield the texts of a study file that are paths outside all of some folders.

    Args:
        data: The content of the file, with the paths of its known fields made absolute. In other fields, such as a
            plug-in's settings, a text counts as a path if it is absolute or leads to a parent folder.
        roots: The folders. Symbolic links are followed, so that none leads out of them.
    """
    allowed = [root.resolve() for root in roots]
    for at, text in _texts(data, ()):
        if _is_path(text) and not any(expanded_path(text).resolve().is_relative_to(root) for root in allowed):
            where = ", ".join(map(str, roots)) or "none"
            yield Problem(
                at,
                f"must be inside a data folder of this server ({where}), but got {found(text)}. Move the data there, "
                "or ask the administrator to add their folder to VITSEARCH_DATA_ROOTS.",
            )


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "\\")) or ".." in Path(text).parts


def _texts(value: Any, at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*at, index))
