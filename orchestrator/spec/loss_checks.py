"""Checks that the losses of a recipe have what they read, and fit the other fields."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.spec.method_checks import method_corners, method_lists
from orchestrator.spec.plugin_checks import plugin_corners
from orchestrator.spec.problems import Problem
from plugins import registry
from plugins.protocols import LossInput
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration
from trainers.training.loss_needs import inputs_of, missing_teacher, mixing_problem, smaller_problem
from trainers.yaml_source import KeyPath


def searched_loss_problems(recipe: Mapping[str, Any], teacher: str | None, at: KeyPath) -> Iterator[Problem]:
    """Yield problems of the losses that a train stage fixes or searches.

    Args:
        recipe: The recipe of the study file, whose plug-ins are known to be valid.
        teacher: The teacher of the stage.
        at: Place of the stage.
    """
    losses = [corner for choice in _options(recipe, "loss") for corner in plugin_corners("recipe.loss", choice)]
    yield from _problems(losses, _options(recipe, "mixing"), has_teacher=teacher is not None, at=at)
    for place, methods in method_lists(recipe.get("curriculum", "none")):
        found = (smaller_problem(loss, chosen) for loss in losses for chosen in method_corners(methods))
        problem = next((one for one in found if one is not None), None)
        if problem is not None:
            yield Problem((*at, "recipe", "curriculum", *place), problem)


def loss_problems(configuration: Configuration) -> Iterator[Problem]:
    """Yield problems of the loss of one configuration, whose plug-ins are known to be valid."""
    recipe = configuration.recipe
    yield from _problems([recipe.loss], [recipe.mixing], has_teacher=configuration.teacher is not None, at=())
    problem = smaller_problem(recipe.loss, recipe.curriculum)
    if problem is not None:
        yield Problem(("recipe", "curriculum"), problem)


def _options(recipe: Mapping[str, Any], field: str) -> list[PluginChoice]:
    raw = recipe.get(field)
    if raw is None:
        return []
    return [PluginChoice.model_validate(one) for one in (raw if isinstance(raw, list) else [raw])]


def _problems(
    losses: Sequence[PluginChoice], mixings: Sequence[PluginChoice], *, has_teacher: bool, at: KeyPath
) -> Iterator[Problem]:
    taught = [loss for loss in losses if LossInput.TEACHER in inputs_of(loss)]
    if taught and not has_teacher:
        yield Problem((*at, "recipe", "loss"), missing_teacher(taught[0]))
    if has_teacher and not taught:
        names = ", ".join(name for name in registry.available("losses") if _reads_teacher(name))
        yield Problem(
            (*at, "teacher"),
            f"must be read by a loss of the recipe, but none does. Add one of them to recipe.loss ({names}), or remove "
            "the teacher.",
        )
    mixed = (mixing_problem(loss, mixing) for loss in losses for mixing in mixings)
    problem = next((found for found in mixed if found is not None), None)
    if problem is not None:
        yield Problem((*at, "recipe", "mixing"), problem)
    for choice in losses:
        guide = getattr(registry.create("losses", choice.name, choice.settings), "guide", None)
        if guide is not None:
            try:
                registry.parse_topology(guide)
            except ValueError as error:
                message = f"the guide of `{choice.name}` must be a topology, but: {error}"
                yield Problem((*at, "recipe", "loss"), message)


def _reads_teacher(name: str) -> bool:
    try:
        return LossInput.TEACHER in inputs_of(PluginChoice(name=name))
    except (ImportError, ValueError):  # another package's loss that needs settings
        return False
