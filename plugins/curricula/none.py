"""Every example once per epoch, in random order."""

from dataclasses import dataclass
from typing import ClassVar

from plugins.curricula.mixtures import whole_passes
from plugins.protocols import OrderContext, PluginCard, Selection


@dataclass(frozen=True, kw_only=True)
class NoCurriculum:
    """No curriculum: each pass is a random permutation of the whole training set."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline", cost="nothing")
    needs_difficulty: ClassVar[bool] = False
    independent_of_length: ClassVar[bool] = True

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Whole passes, then a smaller one for the remaining fraction of an epoch."""
        return whole_passes(num_epochs)

    def select(self, size: int, context: OrderContext) -> Selection:
        """Draw `size` examples uniformly without replacement."""
        import torch

        return Selection(torch.randperm(len(context.labels), generator=context.generator)[:size])
