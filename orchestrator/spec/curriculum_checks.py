"""Whether the models of a study have the options that its curricula give their forward pass."""

import inspect
import itertools
from collections.abc import Collection, Iterator, Sequence

from orchestrator.spec.problems import Problem
from orchestrator.spec.stages import GrowStage, ScreenStage, StageSpec, TrainStage
from orchestrator.spec.topology_checks import dimension_ends
from orchestrator.spec.yaml_source import KeyPath
from plugins import registry
from plugins.protocols import ModelPhases
from search_spaces.recipes import PluginChoice, decode_plugin, parse_plugin_dimensions

_MAX_CORNERS = 256
_NUM_STEPS = 1000
"""Points of a training at which a curriculum is asked for its options."""


def curriculum_problems(stage: StageSpec, before: Sequence[StageSpec], at: KeyPath) -> Iterator[Problem]:
    """Curricula of a train stage that its models cannot follow."""
    if not isinstance(stage, TrainStage) or "curriculum" not in stage.recipe:
        return
    given, path = stage.recipe["curriculum"], (*at, "recipe", "curriculum")
    spaces = _trained_spaces(stage, before)
    for index, item in enumerate(given if isinstance(given, list) else [given]):
        problem = option_problem(PluginChoice.model_validate(item), spaces)
        if problem:
            yield Problem((*path, index) if isinstance(given, list) else path, problem)


def option_problem(curriculum: PluginChoice, spaces: Collection[str]) -> str | None:
    """Why models of these spaces cannot follow a curriculum, whose settings may be ranges, or `None`.

    An option that changes what the forward pass costs is a keyword of the space's `costs` too, which needs no model.
    """
    options: set[str] = set()
    for corner in plugin_corners("recipe.curriculum", curriculum):
        plugin = registry.create("curricula", corner.name, corner.settings)
        if isinstance(plugin, ModelPhases):
            options.update(*(plugin.model_options(step / _NUM_STEPS) for step in range(_NUM_STEPS)))
    for space in spaces:
        missing = sorted(options - set(inspect.signature(registry.load("spaces", space).costs).parameters))
        if missing:
            return (
                f"{curriculum.name} needs models whose forward pass has the option {missing[0]}, but those of the "
                f"space {space} have not. Choose another curriculum or other topologies."
            )
    return None


def plugin_corners(key: str, choice: PluginChoice) -> list[PluginChoice]:
    """The plug-in at the extremes of its ranges, in all combinations (up to a limit)."""
    base, dimensions = parse_plugin_dimensions(key, choice)
    if not dimensions:
        return [base]
    ends = [dimension_ends(dimension) for dimension in dimensions]
    names = [dimension.name for dimension in dimensions]
    points = itertools.islice(itertools.product(*ends), _MAX_CORNERS)
    decoded = (decode_plugin(key, dict(zip(names, values, strict=True))) for values in points)
    return [choice for choice in decoded if choice is not None]


def _trained_spaces(stage: TrainStage, before: Sequence[StageSpec]) -> list[str]:
    """Names of the spaces whose topologies the stage trains."""
    texts = list(stage.topologies)
    if not texts:
        screens = [other for other in before if isinstance(other, ScreenStage)]
        grown = [other for other in before if isinstance(other, GrowStage)]
        texts = [screen.space.name for screen in screens[-1:]]
        texts += [stage.topology for stage in grown[-1:] if stage.topology is not None]
    return list(dict.fromkeys(text.partition(":")[0] for text in texts))
