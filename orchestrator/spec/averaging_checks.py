"""Checks of averaging methods that depend on the training whose checkpoints they average."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.spec.plugin_checks import plugin_corners
from orchestrator.spec.problems import Problem
from plugins import registry
from plugins.protocols import EvaluatingAverager
from search_spaces.ema_rates import ema_name
from search_spaces.recipes import PluginChoice, describe_plugin, parse_recipe_space
from trainers.config import Configuration

METHOD_KEY = "averaging.method"
"""Name of the dimension that selects an averaging method."""


def needs_validation(averaging: PluginChoice) -> bool:
    """Whether a method chooses weights by validation images."""
    averager = registry.create("averaging", averaging.name, averaging.settings)
    return isinstance(averager, EvaluatingAverager) or reads_of(averaging) == "best"


def reads_of(averaging: PluginChoice) -> str | None:
    """What a method with fixed settings receives; see `plugins.protocols.Averager`."""
    found: str | None = getattr(registry.create("averaging", averaging.name, averaging.settings), "reads", None)
    return found


def averaging_corners(method: PluginChoice) -> list[PluginChoice]:
    """A method with every combination of the extremes of its settings; none if it is not installed."""
    return plugin_corners(METHOD_KEY, method) if method.name in registry.available("averaging") else []


def mixes_trials(method: PluginChoice) -> bool:
    """Whether a method may mix several trials."""
    return any(reads_of(corner) == "trials" for corner in averaging_corners(method))


def checkpoint_needs(methods: Sequence[PluginChoice]) -> Iterator[tuple[int, int, PluginChoice]]:
    """The smallest and the largest number of checkpoints that each installed method needs, and its longest average.

    A mix of trials needs only the newest checkpoint of each.
    """
    for method in methods:
        corners = [corner for corner in averaging_corners(method) if reads_of(corner) != "trials"]
        if corners:
            needed = [registry.create("averaging", corner.name, corner.settings).num_needed for corner in corners]
            most = max(needed)
            yield min(needed), most, corners[needed.index(most)]


def too_long_averages(stage: str, methods: Sequence[PluginChoice], *, num_checkpoints: int) -> list[str]:
    """Name the methods whose settings need more than `num_checkpoints` checkpoints, and which are left out."""
    unfit = []
    for least, most, longest in checkpoint_needs(methods):
        if least > num_checkpoints:
            unfit.append(f"{longest.name} (needs at least {least})")
        elif most > num_checkpoints:
            unfit.append(f"settings of {longest.name} up to {describe_plugin(longest)} (needs {most})")
    if not unfit:
        return []
    count = "1 checkpoint" if num_checkpoints == 1 else f"{num_checkpoints} checkpoints"
    return [f"stage {stage!r} has {count} to average, so it leaves out {' and '.join(unfit)}"]


def maintained_problem(method: PluginChoice, recipe: Mapping[str, Any], training: str) -> str | None:
    """Why a method cannot read the average that it needs; `None` if it can, or needs none.

    Args:
        method: The method; its settings may be searched.
        recipe: The recipe of a study file; its fields may be searched.
        training: The train stage or configuration, for the message.
    """
    for corner in averaging_corners(method):
        field = reads_of(corner)
        if field not in ("ema", "swa"):
            continue
        if recipe.get(field) is None:
            return (
                f"{method.name} reads an average of the weights that training maintains, but {training} has no "
                f"recipe.{field}. Add it there, or remove the method."
            )
        problem = _rate_problem(corner, recipe["ema"]) if field == "ema" else None
        if problem is not None:
            return f"{method.name}: {problem}"
    return None


def _rate_problem(method: PluginChoice, ema: Any) -> str | None:
    """Why a method's `rate` does not select one of the moving averages of a recipe whose `ema` may be searched."""
    rate = method.settings.get("rate")
    try:
        space = parse_recipe_space({"ema": ema})
    except ValueError:
        return None  # reported with the recipe
    if space.dimensions:
        return None if rate is None else "`rate` must be left out if recipe.ema is searched. Remove it."
    try:
        ema_name(space.base.ema, rate)
    except ValueError as error:
        return str(error)
    return None


def averaging_problems(configuration: Configuration) -> Iterator[Problem]:
    """Yield an averaging method that one training of the configuration cannot provide for."""
    averaging = configuration.averaging
    if averaging.name not in registry.available("averaging"):
        return  # reported already
    at = ("averaging",)
    if configuration.train_on != "train" and needs_validation(averaging):
        yield Problem(
            at,
            f"must not choose by validation images with `train_on: {configuration.train_on}`, which leaves none, but "
            f"{describe_plugin(averaging)} does. Use another method, such as last.",
        )
    if reads_of(averaging) == "trials":
        yield Problem(
            at,
            f"must be of one training, but {describe_plugin(averaging)} mixes several trials of a study. Use another "
            "method, such as last.",
        )
    recipe = configuration.recipe.model_dump(exclude_none=True)
    problem = maintained_problem(averaging, recipe, "the configuration")
    if problem is not None:
        yield Problem(at, problem)
