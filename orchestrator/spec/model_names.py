"""How files name existing models: `STUDY@champion`, the path of a model folder or a file with weights, or a trial."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from trainers.yaml_source import absolute_path

CHAMPION_SUFFIX = "@champion"
"""Follows a study's name, as in MLflow's addresses of models."""


_TRIAL = re.compile(r"(?:(?P<study>[a-z0-9._~-]+)/)?(?P<stage>[a-z0-9._-]+)@(?:best|trial-(?P<number>\d+))")


class NamedTrial(NamedTuple):
    """A trial of a `train` stage."""

    study: str | None
    """`None` for the study that names it."""
    stage: str
    number: int | None
    """`None` for the best one."""


def trial_named(text: str) -> NamedTrial | None:
    """The trial that `STAGE@best`, `STAGE@trial-7` or one of them after `STUDY/` names; `None` for other texts."""
    found = _TRIAL.fullmatch(text)
    if found is None:
        return None
    return NamedTrial(found["study"], found["stage"], None if found["number"] is None else int(found["number"]))


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


def with_absolute_teacher(raw: Any, folder: Path) -> Any:
    """The unchecked `teacher` of a file with an absolute path, if it is one; see `with_absolute_weights`."""
    source = raw.get("source") if isinstance(raw, dict) else raw
    return raw if isinstance(source, str) and trial_named(source) else with_absolute_weights(raw, folder)
