"""Checks of a recipe beyond the types of its fields: compatible methods, and models that support them."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.spec.plugin_checks import plugin_corners
from orchestrator.spec.problems import Problem
from orchestrator.spec.topology_checks import smallest_task
from plugins import registry
from search_spaces.base import Topology
from search_spaces.ramps import Ramp, is_ramp
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import DataConfig
from trainers.training.methods import Methods
from trainers.yaml_source import KeyPath

_OPTIONS = "model_options."
_ROLES = {"augmentation": ("augment", "changes single images"), "mixing": ("mix", "mixes images")}


def method_lists(raw: Any) -> list[tuple[tuple[int, ...], tuple[PluginChoice, ...]]]:
    """The alternatives in a `curriculum` entry of a study file, each with its position in the entry.

    A list holds alternatives. An alternative may itself be a list of methods, which are applied in order.
    """
    if not isinstance(raw, list):
        return [((), (PluginChoice.model_validate(raw),))]
    return [
        ((index,), tuple(PluginChoice.model_validate(one) for one in (item if isinstance(item, list) else [item])))
        for index, item in enumerate(raw)
    ]


def method_problem(methods: Sequence[PluginChoice], spaces: Collection[str]) -> str | None:
    """Why a recipe cannot combine these methods, or why models of these spaces do not support them; `None` if all fit.

    The settings of the methods may be ranges. A model option that changes the cost of the forward pass is also a
    keyword of the space's `costs`, so the check builds no model.
    """
    for chosen in method_corners(methods):
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
                        f"{made.owner(field)} needs models whose forward pass has the option {option}, but models of "
                        f"the space {space} do not have it. Choose another curriculum or other topologies."
                    )
    return None


def method_fit_problem(
    methods: Sequence[PluginChoice], image_size: Any, data: DataConfig, topologies: Sequence[Topology], *, epochs: int
) -> str | None:
    """Why methods do not fit the trainings; `None` if all fit.

    Images of the sizes that they set must fit the topologies, and the images the model that measures a difficulty. A
    topology must have the smaller form that a method trains, and a training enough epochs for it.

    Args:
        methods: Methods that `method_problem` accepts.
        image_size: The `image_size` of the recipe in a study file, or `None`.
        data: Size of the images.
        topologies: Topologies that are trained.
        epochs: Number of epochs of each training.
    """
    largest = _written_sizes(image_size) or {data.image_size}
    for chosen in method_corners(methods):
        made = Methods.of(chosen)
        for size in sorted({size for one in largest for size in made.image_sizes(one)}):
            for topology in topologies:
                problem = _size_problem(topology, data, size)
                if problem:
                    return f"images of {size} pixels must fit {topology.id}, but {problem}"
        problem = made.epochs_problem(epochs)
        if problem:
            return problem
        for topology in topologies:
            try:
                made.smaller_topology(topology.id)
            except ValueError as error:
                return str(error)
        for needed in made.prior_difficulties:
            if needed.topology is not None:
                problem = _size_problem(registry.parse_topology(needed.topology), data, data.image_size)
                if problem:
                    return f"`difficulty_topology` must fit the images, but for {needed.topology}, {problem}"
    return None


def method_corners(methods: Sequence[PluginChoice]) -> Iterator[list[PluginChoice]]:
    """The methods with the extremes of the ranges in their settings."""
    corners = [plugin_corners("recipe.curriculum", method) for method in methods]
    for position in range(max(map(len, corners))):
        yield [found[min(position, len(found) - 1)] for found in corners]


def role_problem(field: str, choice: PluginChoice) -> str | None:
    """Why an installed plug-in of the right kind does not suit a recipe field, or `None` if it does."""
    if field not in _ROLES:
        return None
    method, does = _ROLES[field]
    plugin = registry.load("augmentations", choice.name)
    if hasattr(plugin, method):
        return None
    other = "mixing" if field == "augmentation" else "augmentation"
    return f"must be a plug-in that {does}, but {choice.name!r} does not. Move it to `{other}`."


def image_size_problems(raw: Any, data: DataConfig, topologies: Sequence[Topology], at: KeyPath) -> Iterator[Problem]:
    """Yield values of `image_size` that exceed the image size of the data or do not fit the topologies."""
    for size in sorted(_written_sizes(raw)):
        if size > data.image_size:
            yield Problem(
                at, f"must be at most the {data.image_size} pixels of data.image_size, but got {size}. Lower it."
            )
            return
        for topology in topologies:
            problem = _size_problem(topology, data, size)
            if problem:
                yield Problem(at, f"images of {size} pixels must fit {topology.id}, but {problem}")
                return


def _written_sizes(raw: Any) -> set[int]:
    """The image sizes in an entry of a study file, without those of searched functions of progress."""
    sizes: set[int] = set()
    for value in raw if isinstance(raw, list) else [raw]:
        if isinstance(value, int):
            sizes.add(value)
        elif (
            is_ramp(value) and isinstance(value, Mapping) and not any(isinstance(part, list) for part in value.values())
        ):
            ramp = Recipe.model_validate({"image_size": value}).image_size
            assert isinstance(ramp, Ramp)
            sizes |= {round(size) for size in ramp.values()}
    return sizes


def _size_problem(topology: Topology, data: DataConfig, size: int) -> str | None:
    space = registry.load("spaces", topology.id.partition(":")[0])
    problem: str | None = space.problem(topology, smallest_task(data).model_copy(update={"image_size": size}))
    return problem
