"""All classes equally often: images of small classes repeat within an epoch, large classes show only some of theirs."""

from dataclasses import dataclass
from typing import ClassVar

from plugins.curricula.mixtures import visits_of_classes, whole_passes
from plugins.protocols import OrderContext, PluginCard, Selection


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Class-balanced sampling. A class repeats an image only after it has shown all of its images in the pass.

    With `class_weights: balanced`, small classes would be favoured twice. Use one of the two.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; class-balanced sampling in Kang et al. 2020, arXiv:1910.09217", cost="nothing"
    )
    needs_difficulty: ClassVar[bool] = False
    independent_of_length: ClassVar[bool] = True

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Whole passes, then a smaller one for the remaining fraction of an epoch."""
        return whole_passes(num_epochs)

    def select(self, size: int, context: OrderContext) -> Selection:
        """Draw `size` visits, as many of each class as possible; which classes get one more is random."""
        import torch

        labels, generator = context.labels, context.generator
        classes = torch.bincount(labels).nonzero()[:, 0]
        classes = classes[torch.randperm(len(classes), generator=generator)]
        each, more = divmod(size, len(classes))
        counts = each + (torch.arange(len(classes)) < more).long()
        return Selection(visits_of_classes(counts, labels, classes, generator))
