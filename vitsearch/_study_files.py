"""Reads study files. Nothing here imports torch or a database."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import StudySpec, load_spec, make_spec


def load_study(
    study: Mapping[str, Any] | str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    home: Path | str | None = None,
) -> StudySpec:
    """Read and check a study; nothing is written or started.

    Args:
        study: The path of a study file, or the content of one as a mapping. Relative paths in a file are relative to
            its folder, those in a mapping to the working directory.
        overrides: Other values by dotted key, such as `{"data.source": "photos"}`, relative to the working directory.
        home: Where formulas are kept that the study may name as proxies, by default `VITSEARCH_HOME`.

    Raises:
        SpecError: All mistakes: where, what must hold, what was found, the nearest valid name.
    """
    settings_of(home).apply()
    replaced = _plain(overrides or {})
    if isinstance(study, Mapping):
        return make_spec(_plain(study), overrides=replaced)
    return load_spec(os.fspath(study), overrides=replaced)


def settings_of(home: Path | str | None, tracking: bool | None = None) -> Settings:
    """The settings of the environment, with what a caller gave instead."""
    given = {"home": home, "tracking": tracking}
    return load_settings(**{name: value for name, value in given.items() if value is not None})


def _plain(value: Any) -> Any:
    """Mappings, sequences and paths as dicts, lists and text, as a file has them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
