"""Schedules that depend on the gradient norms of an earlier train stage: the norms are kept in the stage's folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.spec.plugin_checks import plugin_corners
from orchestrator.spec.problems import Problem
from orchestrator.spec.stage_model import StageModel
from orchestrator.stages.context import StageFailedError
from plugins import registry
from plugins.protocols import LearnsFromStage, Signal
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import EpochReport
from trainers.storage.artifacts import fetched, published
from trainers.yaml_source import KeyPath

_FILE = "gradient-norms.json"
_KEY = "recipe.schedule"


def stages_read(recipe: Mapping[str, Any]) -> frozenset[str]:
    """Names of the train stages whose gradient norms the schedules of a recipe need.

    Args:
        recipe: The recipe of a study file; its schedule and the settings of it may be searched.
    """
    raw = recipe.get("schedule", ())
    found: set[str] = set()
    for item in raw if isinstance(raw, list | tuple) else [raw]:
        try:
            corners = plugin_corners(_KEY, PluginChoice.model_validate(item))
            schedules = [registry.create("schedules", corner.name, corner.settings) for corner in corners]
        except (ValueError, ImportError):
            continue  # reported with the recipe
        names = [schedule.stage for schedule in schedules if isinstance(schedule, LearnsFromStage)]
        found |= {name for name in names if name is not None}
    return frozenset(found)


def stage_problems(recipe: Mapping[str, Any], before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
    """Yield schedules that name a stage that is not an earlier train stage."""
    known = [stage.name for stage in before if stage.stage == "train"]
    for name in sorted(stages_read(recipe) - set(known)):
        names = ", ".join(known) or "there is none"
        yield Problem(
            at,
            f"`stage` of the schedule must name an earlier train stage ({names}), but got {name!r}. Change it, or give "
            "`norms`.",
        )


def learn_schedules(
    folder: Path, recipe: Mapping[str, Any], best_curve: Callable[[str], Sequence[EpochReport]]
) -> None:
    """Keep the norms that the schedules of a stage's recipe need, unless they are kept already.

    Args:
        folder: Folder of the stage.
        recipe: The recipe of the study file.
        best_curve: Returns the reports of the best trial of a train stage by the stage's name.

    Raises:
        StageFailedError: The best trial of an earlier stage has fewer than two epochs, or has not recorded its norms.
    """
    file = folder / _FILE
    norms = json.loads(file.read_bytes()) if file.is_file() else {}
    names = stages_read(recipe) - norms.keys()
    if not names:
        return
    norms |= {name: _norms_in(name, best_curve(name)) for name in sorted(names)}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{_FILE}")
    temporary.write_text(json.dumps(norms), encoding="utf-8")
    temporary.replace(file)
    published(file)


def with_learned_schedule(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe whose schedule contains the norms instead of the name of a stage.

    Args:
        recipe: The recipe of a trial.
        folder: Folder of its stage.

    Raises:
        StageFailedError: The norms of the stage cannot be read.
    """
    choice = recipe.schedule
    schedule = registry.create("schedules", choice.name, choice.settings)
    if not isinstance(schedule, LearnsFromStage) or schedule.stage is None:
        return recipe
    try:
        norms = json.loads(fetched(folder / _FILE).read_bytes())[schedule.stage]
    except (OSError, ValueError, KeyError) as error:
        raise StageFailedError(
            f"{folder / _FILE} must contain the gradient norms of stage {schedule.stage!r}, but cannot be read "
            f"({error}). Restore the folder, or run the study again under another name."
        ) from error
    return recipe.model_copy(update={"schedule": PluginChoice(name=choice.name, settings=schedule.learned(norms))})


def _norms_in(name: str, reports: Sequence[EpochReport]) -> list[float]:
    signals = [report.signals for report in reports]
    norms = [one[Signal.GRADIENT_NORM] for one in signals if one.get(Signal.GRADIENT_NORM, 0.0) > 0]
    if len(norms) < max(2, len(signals)):
        raise StageFailedError(
            f"the best trial of stage {name!r} must have recorded the signal {Signal.GRADIENT_NORM} in every epoch and "
            f"in at least 2, but did in {len(norms)} of {len(signals)}. Train it for more epochs, with "
            f"`signals: [{Signal.GRADIENT_NORM}]`."
        )
    return norms
