"""Averages of the last layer by class group: each group of classes is averaged over as many checkpoints as suit it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import check_alike, every_nth, num_spanned, weighted_sum
from plugins.averaging.greedy_soup import goodness
from plugins.protocols import Evaluated, PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor

LAST_LAYER = "head."
"""Begins the names of the last layers in our models; the last of them computes the classes."""


def groups_by_loss(losses: Mapping[int, float], count: int) -> list[list[int]]:
    """Split classes into at most `count` groups of about equal size, those with the highest losses first.

    Args:
        losses: Loss of each class that has images. Other classes belong to no group.
        count: Number of groups.
    """
    hardest_first = sorted(losses, key=lambda label: (-losses[label], label))
    count = min(count, len(hardest_first))
    size = len(hardest_first)
    return [hardest_first[number * size // count : (number + 1) * size // count] for number in range(count)]


def last_layer(state: StateDict) -> tuple[str, ...]:
    """Names of the weight and bias that compute the classes: those of `head`, or of its module with the highest number.

    The order of the tensors does not matter; files do not keep it.

    Raises:
        ValueError: The model has no layers named `head`.
    """
    names = [name for name in state if name.startswith(LAST_LAYER)]
    names.sort(key=lambda name: [part.zfill(6) for part in name.split(".")])
    if not names:
        raise ValueError(
            f"averaging by class group needs a model whose last layer is named `{LAST_LAYER.rstrip('.')}`, but none of "
            "its tensors is. Choose another averaging."
        )
    module = names[-1].rpartition(".")[0]
    return tuple(name for name in names if name.rpartition(".")[0] == module)


def with_rows(state: StateDict, other: StateDict, names: Sequence[str], rows: Sequence[int]) -> "dict[str, Tensor]":
    """A state dict with some rows of some tensors from another one. The inputs are not modified."""
    changed = {name: state[name].clone() for name in names}
    for name, value in changed.items():
        value[list(rows)] = other[name][list(rows)]
    return {**state, **changed}


@dataclass(frozen=True, kw_only=True)
class ClassGroups:
    """The mean of the newest checkpoints, except for the rows of the last layer, which each group averages as suits it.

    Groups are chosen by the validation loss of their classes under the mean. One after another, the hardest first, each
    tries the mean rows of the newest 1, 2, ... checkpoints, and keeps those with the best validation metric. The result
    is chosen on the validation part among several candidates, so its validation metric is optimistic.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "ours: the mean of checkpoints as in Kaddour 2022, arXiv:2209.14981, with a greedy choice of the number of "
            "checkpoints for each group of rows of the classifier"
        ),
        cost="1 + `groups` (`window` - 1) forward passes of the validation images, with `window` checkpoints in memory",
        needs=("validation images", "a model whose last layer is named head"),
    )
    window: Annotated[int, Field(ge=2)] = 5
    """Number of checkpoints in the mean, and the largest number that a group averages."""
    spacing: Annotated[int, Field(ge=1)] = 1
    """Distance between the checkpoints: every `spacing`-th one, counted back from the newest."""
    groups: Annotated[int, Field(ge=1)] = 3
    """Number of groups of classes."""

    @property
    def num_needed(self) -> int:
        """`(window - 1) * spacing + 1`."""
        return num_spanned(self.window, self.spacing)

    def average_by(
        self, checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
    ) -> "dict[str, Tensor]":
        """The mean of every `spacing`-th of the newest checkpoints, with the best rows of each group.

        Raises:
            ValueError: There are fewer than `num_needed` checkpoints, they differ in keys or shapes, or the model
                has no last layer of this name.
        """
        chosen = every_nth(checkpoints, window=self.window, spacing=self.spacing)
        check_alike(chosen)
        means = [weighted_sum(chosen[-count:], [1 / count] * count) for count in range(1, self.window + 1)]
        best = means.pop()
        result = evaluate(best)
        groups = groups_by_loss(result.class_losses, self.groups)
        names = last_layer(best) if groups else ()
        for rows in groups:
            found = [with_rows(best, mean, names, rows) for mean in means]
            for candidate in found:
                tried = evaluate(candidate)
                if goodness(tried) > goodness(result):
                    best, result = candidate, tried
        return best
