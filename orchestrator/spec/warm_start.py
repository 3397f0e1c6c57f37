"""The `warm_start` of a train stage: points of another search or model to try first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from orchestrator.spec.model_names import absolute_model
from orchestrator.spec.stage_model import Count, SpecModel
from trainers.yaml_source import absolute_path

_KINDS = ("study", "model", "file")


class WarmStartError(ValueError):
    """What a stage should be warm-started from is missing, or has nothing to offer."""


class WarmStart(SpecModel):
    """Where a search takes its first points from; exactly one of `study`, `model` and `file`."""

    study: str | None = Field(default=None, min_length=1, description="a study whose `top` best trials are tried first")
    top: Count = Field(default=5, description="number of best trials of the `study` to try first")
    model: str | None = Field(
        default=None, min_length=1, description="`STUDY@champion` or a model folder, whose configuration is tried first"
    )
    file: str | None = Field(
        default=None, min_length=1, description="a configuration, as printed by `vitsearch best`, to try first"
    )

    @model_validator(mode="after")
    def _names_one_source(self) -> "WarmStart":
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(f"`{kind}`" for kind in given) or "none"
            raise ValueError(f"must name exactly one of `study`, `model` and `file`, but has {found}. Keep one.")
        # The default is accepted, because a stored file of a study names all its fields.
        if self.top != type(self).model_fields["top"].default and self.study is None:
            raise ValueError(f"`top` is only for a `study`, but got a `{given[0]}`, which has one point. Remove it.")
        return self

    @property
    def origin(self) -> str:
        """The source in words: `study photos`, `photos@champion` or a path."""
        return f"study {self.study}" if self.study is not None else str(self.model or self.file)


def with_absolute_warm_start(raw: Any, folder: Path) -> Any:
    """The unchecked `warm_start` of a file with paths resolved relative to a folder."""
    if not isinstance(raw, Mapping):
        return raw
    given = dict(raw)
    if isinstance(given.get("model"), str):
        given["model"] = absolute_model(given["model"], folder)
    if isinstance(given.get("file"), str) and given["file"]:
        given["file"] = absolute_path(given["file"], folder)
    return given
