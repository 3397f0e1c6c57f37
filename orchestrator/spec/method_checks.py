"""What a recipe must hold beyond its fields' types: methods that agree, and models that can follow them."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.spec.plugin_checks import plugin_corners
from orchestrator.spec.problems import Problem
from orchestrator.spec.topology_checks import smallest_task
from orchestrator.spec.yaml_source import KeyPath
from plugins import registry
from search_spaces.base import Topology
from search_spaces.ramps import Ramp, is_ramp
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import DataConfig
from trainers.training.methods import Methods

_OPTIONS = "model_options."
_ROLES = {"augmentation": ("augment", "changes single images"), "mixing": ("mix", "mixes images")}


def method_lists(raw: Any) -> list[tuple[tuple[int, ...], tuple[PluginChoice, ...]]]:
    """The alternatives of a `curriculum` entry of a study file, each with its place in the entry.

    A list holds alternatives, and an alternative may be a list of methods that are applied in order.
    """
    if not isinstance(raw, list):
        return [((), (PluginChoice.model_validate(raw),))]
    return [
        ((index,), tuple(PluginChoice.model_validate(one) for one in (item if isinstance(item, list) else [item])))
        for index, item in enumerate(raw)
    ]


def method_problem(methods: Sequence[PluginChoice], spaces: Collection[str]) -> str | None:
    """Why a recipe cannot have these methods, whose settings may be ranges, or models of these spaces not follow them.

    An option that changes what the forward pass costs is a keyword of the space's `costs` too, which needs no model.
    """
    corners = [plugin_corners("recipe.curriculum", method) for method in methods]
    for position in range(max(map(len, corners))):
        chosen = [found[min(position, len(found) - 1)] for found in corners]
        try:
            made = Methods.of(chosen)
        except ValueError as error:
            return str(error)
        for space in spaces:
            known = set(inspect.signature(registry.load("spaces", space).costs).parameters)
            for field in sorted(made.changes):
                option = field.removeprefix(_OPTIONS)
                if field.startswith(_OPTIONS) and option not in known:
                    return (
                        f"{made.owner(field)} needs models whose forward pass has the option {option}, but those of "
                        f"the space {space} have not. Choose another curriculum or other topologies."
                    )
    return None


def role_problem(field: str, choice: PluginChoice) -> str | None:
    """Why a plug-in cannot be in a field of a recipe, or `None` if it can; it is installed, and of the field's kind."""
    if field not in _ROLES:
        return None
    method, does = _ROLES[field]
    plugin = registry.load("augmentations", choice.name)
    if hasattr(plugin, method):
        return None
    other = "mixing" if field == "augmentation" else "augmentation"
    return f"must be a plug-in that {does}, but {choice.name!r} does not. Name it in `{other}`."


def image_size_problems(raw: Any, data: DataConfig, topologies: Sequence[Topology], at: KeyPath) -> Iterator[Problem]:
    """Sizes of `image_size` that exceed the data's or do not fit topologies."""
    sizes: set[int] = set()
    values: list[Any] = raw if isinstance(raw, list) else [raw]
    for value in values:
        if isinstance(value, int):
            sizes.add(value)
        elif (
            is_ramp(value) and isinstance(value, Mapping) and not any(isinstance(part, list) for part in value.values())
        ):
            ramp = Recipe.model_validate({"image_size": value}).image_size
            assert isinstance(ramp, Ramp)
            sizes |= {round(size) for size in ramp.values()}
    for size in sorted(sizes):
        if size > data.image_size:
            yield Problem(
                at, f"must be at most the {data.image_size} pixels of data.image_size, but got {size}. Lower it."
            )
            return
        for topology in topologies:
            space = registry.load("spaces", topology.id.partition(":")[0])
            problem = space.problem(topology, smallest_task(data).model_copy(update={"image_size": size}))
            if problem:
                yield Problem(at, f"images of {size} pixels must fit {topology.id}, but {problem}")
                return
