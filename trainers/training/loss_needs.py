"""What a loss needs from the rest of a configuration: a teacher, a guide, images that are not mixed. Plain data."""

from collections.abc import Sequence

from plugins.protocols import AttentionMixing, GuidedLoss, LossInput, StatefulLoss, TrainsSmaller, loss_inputs
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration

_OF_TWO = frozenset({LossInput.PEER, LossInput.MATE})


def inputs_of(loss: PluginChoice) -> frozenset[LossInput]:
    """The inputs that a loss reads and training must compute."""
    return loss_inputs(create("losses", loss.name, loss.settings))


def trains_two(loss: PluginChoice) -> bool:
    """Whether a loss reads the logits of a second model that is trained at the same time."""
    return bool(inputs_of(loss) & _OF_TWO)


def mixing_problem(loss: PluginChoice, mixing: PluginChoice) -> str | None:
    """Why a loss cannot be used with a mixing of images; `None` if it can."""
    if mixing.name == "none" or not isinstance(create("losses", loss.name, loss.settings), StatefulLoss):
        return None
    return (
        f"must be none with the loss `{loss.name}`, which keeps a state of each image, but is {mixing.name}: a mixed "
        "image has none. Choose another loss, or do not mix."
    )


def reads_attention(mixing: PluginChoice) -> bool:
    """Whether the targets of mixed images follow the attention of the model."""
    plugin = create("augmentations", mixing.name, mixing.settings)
    return isinstance(plugin, AttentionMixing) and plugin.reads_attention


def missing_teacher(loss: PluginChoice) -> str:
    """The message for a loss without the teacher that it needs."""
    return (
        f"the loss `{loss.name}` needs a trained model to learn from, but `teacher` is not set. Name a model folder or "
        "STUDY@champion there."
    )


def guide_of(configuration: Configuration) -> tuple[str, int]:
    """Topology and seed of the guide of a configuration's loss.

    Raises:
        ValueError: The loss reads layers, but names no guide.
    """
    choice = configuration.recipe.loss
    loss = create("losses", choice.name, choice.settings)
    if not isinstance(loss, GuidedLoss):
        raise ValueError(
            f"the loss {choice.name!r} reads layers, so it must have `guide` and `guide_seed` (`plugins.protocols."
            "GuidedLoss`), but has not. Update its package."
        )
    return loss.guide or configuration.topology, loss.guide_seed


def smaller_problem(loss: PluginChoice, methods: Sequence[PluginChoice]) -> str | None:
    """Why a loss cannot be used with methods of a recipe, one of which trains a smaller network; `None` if it can."""
    made = (create("curricula", method.name, method.settings) for method in methods)
    if not trains_two(loss) or not any(isinstance(one, TrainsSmaller) for one in made):
        return None
    return (
        f"a curriculum that trains a smaller network must not be combined with a loss that trains two models, but the "
        f"loss is `{loss.name}`. Choose another loss or curriculum."
    )
