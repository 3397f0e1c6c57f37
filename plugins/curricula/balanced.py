"""All classes equally often: images of small classes repeat within an epoch, large classes show only some of theirs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import OrderContext, PluginCard, Selection

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
        whole = math.floor(num_epochs)
        rest = num_epochs - whole
        return (1.0,) * whole + ((rest,) if rest else ())

    def select(self, size: int, context: OrderContext) -> Selection:
        """Draw `size` visits, as many of each class as possible; which classes get one more is random."""
        import torch

        labels, generator = context.labels, context.generator
        classes = torch.bincount(labels).nonzero()[:, 0]
        classes = classes[torch.randperm(len(classes), generator=generator)]
        each, more = divmod(size, len(classes))
        visits = [
            _visits((labels == label).nonzero()[:, 0], each + (place < more), generator)
            for place, label in enumerate(classes)
        ]
        indices = torch.cat(visits)
        return Selection(indices[torch.randperm(size, generator=generator)])


def _visits(images: "Tensor", count: int, generator: "torch.Generator") -> "Tensor":
    """`count` of the images, in random order; each occurs equally often, up to one."""
    import torch

    rounds = [torch.randperm(len(images), generator=generator) for _ in range(-(-count // len(images)))]
    return images[torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[:count]]
