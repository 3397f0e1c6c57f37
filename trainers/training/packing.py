"""Decides which trainings can be computed together in a pack, from plain data: no model or data is loaded."""

from plugins.protocols import can_pack
from plugins.registry import create, parse_topology
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice
from trainers.config import Configuration, TaskOutcome, TrainTask
from trainers.training.methods import Methods

_SHAPE_FIELDS = frozenset({"batch_size", "image_size", "model_options"})
"""Settings of a step that determine the shapes of its tensors."""


def can_be_packed(first: TrainTask, second: TrainTask) -> str | None:
    """The human-readable reason why two trainings cannot share a pack; `None` if they can.

    They must have the same topology, data and metric, and steps of the same shapes: equal batch sizes, image sizes and
    model options at the same time. Everything else may differ: numbers of the recipe, its schedule, optimizer, loss
    and augmentations, the example order, stopping criterion, seed, number of epochs, and progress.
    """
    one, other = first.configuration, second.configuration
    if parse_topology(one.topology).id != parse_topology(other.topology).id:
        return f"their topologies differ: {one.topology} and {other.topology}"
    if one.data != other.data:
        return "their data differ"
    if one.recipe.batch_size != other.recipe.batch_size:
        return f"their batch sizes differ: {one.recipe.batch_size} and {other.recipe.batch_size}"
    if one.recipe.image_size != other.recipe.image_size:
        return f"their image sizes differ: {one.recipe.image_size} and {other.recipe.image_size}"
    if _shape_methods(one) != _shape_methods(other) or (_changes_shapes(one) and one.epochs != other.epochs):
        return (
            "their recipes change the shapes of a step at different times: "
            f"{_described(one)} over {one.epochs} epochs and {_described(other)} over {other.epochs}, or with other "
            "settings"
        )
    for configuration in (one, other):
        unpackable = unpackable_plugin(configuration)
        if unpackable is not None:
            return f"{unpackable} cannot be computed with stacked weights"
    if one.metric != other.metric:
        return f"their metrics differ: {one.metric.name} and {other.metric.name}, or with other settings"
    if first.precision != second.precision:
        return f"their precisions differ: {first.precision} and {second.precision}"
    if first.alone or second.alone:
        return "one of them must be trained alone"
    if first.folder == second.folder:
        return f"both save their checkpoints in {first.folder}"
    return None


def unpackable_plugin(configuration: Configuration) -> str | None:
    """The first plug-in of a recipe that cannot be packed, as `loss 'NAME'`; `None` if all can."""
    for field, kind in PLUGIN_FIELDS.items():
        value = getattr(configuration.recipe, field)
        choices: tuple[PluginChoice, ...] = value if isinstance(value, tuple) else (value,)
        for choice in choices:
            if not can_pack(create(kind, choice.name, choice.settings)):
                return f"{field} {choice.name!r}"
    return None


def is_tried_alone(outcome: TaskOutcome) -> bool:
    """Whether a training with this outcome in a pack is retried alone, because the pack may be the cause.

    The other trainings of the pack use memory, and a model that fails with stacked weights may work without. Losses
    that are not finite would not be finite alone either.
    """
    return outcome.error in ("out-of-memory", "exception") and outcome.details.get("pack_size", 1) > 1


def _shape_methods(configuration: Configuration) -> list[PluginChoice]:
    """Methods that change the shapes of steps, with their settings."""
    return [
        choice
        for choice in configuration.recipe.curriculum
        if {field.partition(".")[0] for field in Methods.of([choice]).changes} & _SHAPE_FIELDS
    ]


def _changes_shapes(configuration: Configuration) -> bool:
    recipe = configuration.recipe
    ramps = isinstance(recipe.batch_size, Ramp) or isinstance(recipe.image_size, Ramp)
    return ramps or bool(_shape_methods(configuration))


def _described(configuration: Configuration) -> str:
    names = [choice.name for choice in _shape_methods(configuration)]
    return ", ".join(names) if names else "a plain recipe"
