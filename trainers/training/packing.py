"""Which trainings can be computed together, as one pack. Plain data: nothing is built or loaded."""

from plugins.protocols import can_pack
from plugins.registry import create, parse_topology
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice
from trainers.config import Configuration, TaskOutcome, TrainTask
from trainers.training.methods import Methods

_SHAPE_FIELDS = frozenset({"batch_size", "image_size", "model_options"})
"""Settings of a step that decide the shapes of its tensors."""


def can_be_packed(first: TrainTask, second: TrainTask) -> str | None:
    """Why two trainings cannot share a pack, in words that a person can read; `None` if they can.

    They must have one topology, one data set, and steps of the same shapes: equal batch sizes, image sizes and model
    options at equal times. Everything else may differ: numbers of the recipe, its schedule, optimizer, loss and
    augmentations, which images a curriculum visits when, stopping criterion, seed, number of epochs, and how far each
    has come.
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
        lonely = unpackable_plugin(configuration)
        if lonely is not None:
            return f"{lonely} cannot be computed with stacked weights"
    if first.alone or second.alone:
        return "one of them is to be trained alone"
    if first.folder == second.folder:
        return f"both keep their checkpoints in {first.folder}"
    return None


def unpackable_plugin(configuration: Configuration) -> str | None:
    """The plug-in of a recipe that declares that it cannot be packed, as `loss 'NAME'`; `None` if there is none."""
    for field, kind in PLUGIN_FIELDS.items():
        value = getattr(configuration.recipe, field)
        choices: tuple[PluginChoice, ...] = value if isinstance(value, tuple) else (value,)
        for choice in choices:
            if not can_pack(create(kind, choice.name, choice.settings)):
                return f"{field} {choice.name!r}"
    return None


def is_tried_alone(outcome: TaskOutcome) -> bool:
    """Whether a training that ended so in a pack is tried again alone, because the others may be to blame for it.

    They take memory that it needs, and what cannot be computed with stacked weights may be computed without. Losses
    that are not finite are the same alone.
    """
    return outcome.error in ("out-of-memory", "exception") and outcome.details.get("pack_size", 1) > 1


def _shape_methods(configuration: Configuration) -> list[PluginChoice]:
    """Methods that change the shapes of a step, with their settings."""
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
