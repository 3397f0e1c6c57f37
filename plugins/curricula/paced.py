"""Easy to hard: training starts with the easiest examples and grows to the whole training set."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.curricula.difficulty import COST_OF_CHOICE, ByDifficulty
from plugins.protocols import OrderContext, PluginCard, Selection

if TYPE_CHECKING:
    from torch import Tensor


def paced_sizes(num_epochs: float, *, start: float, increase: float, step: float) -> tuple[float, ...]:
    """Sizes of the passes: `min(start * increase ** floor(t / step), 1)`, with `t` the sum of the previous sizes.

    Args:
        num_epochs: Sum of the sizes, in visits of the whole training set. The last pass is shortened to fit.
        start: First size, in (0, 1].
        increase: Growth factor per `step`, above 1.
        step: Visits of the whole training set between two increases.

    Source: Hacohen and Weinshall 2019, arXiv:1904.03626, fixed exponential pacing.
    """
    sizes: list[float] = []
    visited = 0.0
    while num_epochs - visited > 1e-9:
        growths = int((visited + 1e-9) / step)
        size = start
        for _ in range(growths):
            size = min(size * increase, 1.0)
            if size == 1.0:
                break
        sizes.append(min(size, num_epochs - visited))
        visited += sizes[-1]
    return tuple(sizes)


def easiest_per_class(size: int, *, difficulty: "Tensor", labels: "Tensor") -> "Tensor":
    """Indices of the `size` easiest examples, with the class proportions of the whole training set.

    Examples are ranked within their class, and the classes are interleaved in proportion to their sizes. Of equally
    difficult examples, the earlier one comes first.

    Args:
        size: Number of examples.
        difficulty: Higher is harder, shape (N,).
        labels: Class of each example, shape (N,), int64.

    Returns:
        Indices from easy to hard, shape (size,), int64.
    """
    import torch

    by_difficulty = torch.argsort(difficulty, stable=True)
    by_class = by_difficulty[torch.argsort(labels[by_difficulty], stable=True)]
    counts = torch.bincount(labels)
    first_of_class = torch.cumsum(counts, 0) - counts
    owners = labels[by_class]
    rank = torch.arange(len(labels)) - first_of_class[owners]
    share = (rank.double() + 0.5) / counts[owners]
    return by_class[torch.argsort(share, stable=True)[:size]]


@dataclass(frozen=True, kw_only=True)
class Paced(ByDifficulty):
    """Self-paced easy-to-hard training as a plug-in; `paced_sizes` and `easiest_per_class` do the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Hacohen and Weinshall 2019, arXiv:1904.03626, fixed exponential pacing. Differences: difficulty is the "
            "loss under the model being trained (equal for all examples in the first epoch), or one of `difficulty`, "
            "instead of a teacher's confidence; growth is counted in visits of the training set, not in batches; "
            "defaults are 0.25 and 1 epoch instead of 0.04 and 100 batches; class proportions are kept"
        ),
        cost=COST_OF_CHOICE,
        needs=("difficulty",),
    )
    start: Annotated[float, Field(ge=0.01, le=1)] = 0.25
    """First pass, as a fraction of the training set."""
    increase: Annotated[float, Field(gt=1)] = 1.9
    """Factor by which the fraction grows."""
    step: Annotated[float, Field(gt=0)] = 1.0
    """Visits of the whole training set between two increases."""

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes that grow from `start` to 1."""
        return paced_sizes(num_epochs, start=self.start, increase=self.increase, step=self.step)

    def select(self, size: int, context: OrderContext) -> Selection:
        """The `size` easiest examples in random order; random ones of each class if the difficulty is unknown."""
        import torch

        labels, difficulty, generator = context.labels.cpu(), context.difficulty, context.generator
        shuffle = torch.randperm(len(labels), generator=generator)  # breaks ties at random
        hardness = torch.zeros(len(labels)) if difficulty is None else difficulty.detach().cpu()[shuffle]
        chosen = shuffle[easiest_per_class(size, difficulty=hardness, labels=labels[shuffle])]
        return Selection(chosen[torch.randperm(size, generator=generator)])
