"""Which trainings can be computed together, as one pack. Plain data: nothing is built or loaded."""

from plugins.protocols import Curriculum, ModelPhases
from plugins.registry import create, parse_topology
from trainers.config import Configuration, TaskOutcome, TrainTask


def can_be_packed(first: TrainTask, second: TrainTask) -> str | None:
    """Why two trainings cannot share a pack, in words that a person can read; `None` if they can.

    They must have one topology, one data set and one batch size. Everything else may differ: learning rate, weight
    decay, schedule, warm-up, label smoothing, drop path, gradient clip, augmentation, which images a curriculum visits
    when, stopping criterion, seed, number of epochs, and how far each has come.
    """
    one, other = first.configuration, second.configuration
    if parse_topology(one.topology).id != parse_topology(other.topology).id:
        return f"their topologies differ: {one.topology} and {other.topology}"
    if one.data != other.data:
        return "their data differ"
    if one.recipe.batch_size != other.recipe.batch_size:
        return f"their batch sizes differ: {one.recipe.batch_size} and {other.recipe.batch_size}"
    if (_changes_the_model(one) or _changes_the_model(other)) and _phases(one) != _phases(other):
        return (
            "their curricula change what the model computes at different times: "
            f"{one.recipe.curriculum.name} over {one.epochs} epochs and {other.recipe.curriculum.name} over "
            f"{other.epochs}, or with other settings"
        )
    if first.alone or second.alone:
        return "one of them is to be trained alone"
    if first.folder == second.folder:
        return f"both keep their checkpoints in {first.folder}"
    return None


def is_tried_alone(outcome: TaskOutcome) -> bool:
    """Whether a training that ended so in a pack is tried again alone, because the others may be to blame for it.

    They take memory that it needs, and what cannot be computed with stacked weights may be computed without. Losses
    that are not finite are the same alone.
    """
    return outcome.error in ("out-of-memory", "exception") and outcome.details.get("pack_size", 1) > 1


def _changes_the_model(configuration: Configuration) -> bool:
    chosen = configuration.recipe.curriculum
    curriculum: Curriculum = create("curricula", chosen.name, chosen.settings)
    return isinstance(curriculum, ModelPhases)


def _phases(configuration: Configuration) -> tuple[object, int]:
    return configuration.recipe.curriculum, configuration.epochs
