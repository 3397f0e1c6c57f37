"""Studies that a submitted file names: those to warm-start, take weights or learn from, and to compare scores with.

In the file of an owner, `digits` means the owner's study first. Studies of others can be named if they are shared.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from orchestrator.spec.model_names import CHAMPION_SUFFIX, champion_of, trial_named
from orchestrator.spec.study_file import StudySpec
from orchestrator.store.repository import Store
from orchestrator.store.study_names import SEPARATOR, full_name, home_owner, owner_of


class PrivateStudyError(ValueError):
    """A file names a study of another owner that is not shared."""


def with_own_references(spec: StudySpec, owner: str, store: Store) -> StudySpec:
    """A study file whose references have the full names of studies.

    Args:
        spec: The file.
        owner: Whose file it is. The owner of the home may name every study.
        store: The store.

    Raises:
        PrivateStudyError: It names a study that the owner may not read.
    """
    if owner == home_owner():
        return spec
    content = spec.model_dump(mode="json", include={"stages"})
    has_references = False
    for index, stage in enumerate(content["stages"]):
        for where, rename in _references(stage):
            rename(partial(_resolved, owner=owner, store=store, where=f"stages[{index}].{where}"))
            has_references = True
    return StudySpec.model_validate({**spec.model_dump(mode="json"), **content}) if has_references else spec


def _resolved(name: str, *, owner: str, store: Store, where: str) -> str:
    if SEPARATOR not in name:
        own = full_name(name, owner)
        if store.find_study(own) is not None or store.find_study(name) is None:
            return own
    elif owner_of(name) == owner:
        return name
    found = store.queue().find_latest(name)
    if found is None or not found.shared:
        raise PrivateStudyError(
            f"{where}: must name one of {owner}'s studies or one that is shared, but got {name!r}. Ask its owner to "
            "share it, or name another."
        )
    return name


Rename = Callable[[Callable[[str], str]], None]
"""Replaces the name of a study in a place by what a function returns for it."""


def _references(stage: dict[str, Any]) -> Iterator[tuple[str, Rename]]:
    """The places in a stage, as plain data, that name a study."""
    for key in ("weights", "teacher"):
        if isinstance(stage.get(key), str):
            yield key, _in_model(stage, key)
    for where, holder in _holders(stage):
        if isinstance(holder.get("study"), str):
            yield f"{where}.study", _whole(holder)
        if isinstance(holder.get("model"), str):
            yield f"{where}.model", _in_model(holder, "model")


def _holders(stage: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in ("warm_start", "truth"):
        if isinstance(stage.get(key), dict):
            yield key, stage[key]
    for key in ("further", "transfer"):
        for index, source in enumerate(stage.get(key) or ()):
            yield f"{key}[{index}]", source


def _whole(holder: dict[str, Any]) -> Rename:
    def rename(to: Callable[[str], str]) -> None:
        holder["study"] = to(holder["study"])

    return rename


def _in_model(holder: dict[str, Any], key: str) -> Rename:
    """A name in `STUDY@champion` or `STUDY/STAGE@trial-7`; paths and trials of the study itself stay as they are."""

    def rename(to: Callable[[str], str]) -> None:
        text = holder[key]
        champion, trial = champion_of(text), trial_named(text)
        if champion is not None and trial is None:
            holder[key] = f"{to(champion)}{CHAMPION_SUFFIX}"
        elif trial is not None and trial.study is not None:
            holder[key] = f"{to(trial.study)}/{text.partition('/')[2]}"

    return rename
