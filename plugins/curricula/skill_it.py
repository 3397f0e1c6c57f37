"""Class mixture by validation losses: classes with high recent losses, and related ones, are visited more often."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.curricula.mixtures import counts_of_shares, recent_class_values, visits_of_classes, whole_passes
from plugins.protocols import OrderContext, PluginCard, Selection, Signal

if TYPE_CHECKING:
    from torch import Tensor

_RELATED = 0.5
"""Entry of the graph for two related classes."""


def mixture_of_losses(losses: "Tensor", graph: "Tensor", *, rate: float) -> "Tensor":
    """Shares of the classes, `p_i ~ exp(rate * sum_j A_ij * sum_t losses_tj)`, shape (K,).

    Args:
        losses: Validation losses of the last epochs and of each class, shape (T, K), float64.
        graph: `A`, shape (K, K): 1 on the diagonal, and the share of the learning of class `j` that class `i` helps.
        rate: `eta`.

    Source: Chen et al. 2023, arXiv:2307.14430.
    """
    import torch

    return torch.softmax(rate * (graph @ losses.sum(0)), 0)


def parse_pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs of numbers written as `3-5, 1-9`; none in an empty text."""
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        one, _, other = part.partition("-")
        if not (one.strip().isdigit() and other.strip().isdigit()) or int(one) == int(other):
            raise ValueError(
                f"`related` must list pairs of different class numbers such as '3-5, 1-9', but got {part!r}. Correct "
                "it."
            )
        pairs.append((int(one), int(other)))
    return tuple(pairs)


@dataclass(frozen=True, kw_only=True)
class SkillIt:
    """Skill-It's online mixture as a plug-in, with classes as skills; `mixture_of_losses` computes the shares."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Chen et al. 2023, Skill-It, arXiv:2307.14430. Differences: classes take the place of skills; the graph is "
            "given (`related`) instead of learned from trainings on pairs of skills; the mixture changes after each "
            "epoch"
        ),
        cost="one forward pass of the validation part per epoch, for the signal",
        needs=("validation loss of each class",),
    )
    needs_difficulty: ClassVar[bool] = False
    independent_of_length: ClassVar[bool] = True
    rate: Annotated[float, Field(gt=0)] = 0.5
    """How strongly the shares follow the losses."""
    window: Annotated[int, Field(ge=1)] = 3
    """Number of last epochs whose losses are added up."""
    related: str = ""
    """Pairs of related classes by number, such as `3-5, 1-9`: each class of a pair is visited more often if the other
    has a high loss, with half of the weight of its own loss."""

    def __post_init__(self) -> None:
        parse_pairs(self.related)

    @property
    def signals(self) -> frozenset[Signal]:
        """Validation loss of each class."""
        return frozenset({Signal.CLASS_VAL_LOSS})

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Whole passes, then a smaller one for the remaining fraction of an epoch."""
        return whole_passes(num_epochs)

    def select(self, size: int, context: OrderContext) -> Selection:
        """Draw `size` visits by the mixture; all classes have the same share in the first epoch."""
        import torch

        labels = context.labels.cpu()
        classes = torch.bincount(labels).nonzero()[:, 0]
        losses = recent_class_values(context.now.past[-self.window :], Signal.CLASS_VAL_LOSS, classes)
        shares = mixture_of_losses(losses, self._graph(classes), rate=self.rate)
        counts = counts_of_shares(size, shares, context.generator)
        return Selection(visits_of_classes(counts, labels, classes, context.generator))

    def _graph(self, classes: "Tensor") -> "Tensor":
        import torch

        graph = torch.eye(len(classes), dtype=torch.float64)
        places = {int(label): place for place, label in enumerate(classes)}
        for one, other in parse_pairs(self.related):
            if one not in places or other not in places:
                missing = other if one in places else one
                raise ValueError(
                    f"`related` of skill-it must name classes with training images, but got class {missing}. Correct "
                    "it."
                )
            graph[places[one], places[other]] = graph[places[other], places[one]] = _RELATED
        return graph
