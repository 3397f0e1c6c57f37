"""Cyclical Curriculum Learning: the training set shrinks and grows again, easy examples first in line."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OrderContext, PluginCard, Selection


def cycle_sizes(num_epochs: float, *, start: float, end: float, alpha: float) -> tuple[float, ...]:
    """Sizes of the passes: from `start` up to `end` by the factor `1 / alpha`, down again by `alpha`, and so on.

    Args:
        num_epochs: What the sizes add up to, in visits of the whole training set; the last pass is cut to fit.
        start: Smallest size, in (0, 1].
        end: Largest size, in [start, 1].
        alpha: Factor between two passes, in (0, 1).

    Source: Kesgin and Amasyali 2022, arXiv:2202.05531, algorithm 1 (`get_cycle_sizes` in the authors' code).
    """
    sizes: list[float] = []
    size, growing, left = start, True, num_epochs
    while left > 1e-9:
        sizes.append(min(size, left))
        left -= sizes[-1]
        if size <= start:
            growing = True
        elif size >= end:
            growing = False
        size = min(size / alpha, end) if growing else max(size * alpha, start)
    return tuple(sizes)


@dataclass(frozen=True, kw_only=True)
class Cyclical:
    """CCL as a plug-in: sizes by `cycle_sizes`, examples drawn with a probability proportional to 1 / loss."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Kesgin and Amasyali 2022, arXiv:2202.05531. Difference: an example's difficulty is its loss under the "
            "model being trained, measured again at the start of an epoch (in the first epoch all count as equal); "
            "the paper trains a second, plain model first to measure it"
        ),
        cost="one forward pass of the training set per epoch that has a partial pass",
        needs=("difficulty",),
    )
    needs_difficulty: ClassVar[bool] = True
    start: Annotated[float, Field(ge=0.01, le=1)] = 0.25
    """Smallest pass, as a fraction of the training set."""
    end: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    """Largest pass."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor between the sizes of two passes."""

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(
                f"`start` must not exceed `end`, but got start={self.start}, end={self.end}. Lower `start`."
            )

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes that go up and down between `start` and `end`."""
        return cycle_sizes(num_epochs, start=self.start, end=self.end, alpha=self.alpha)

    def select(self, size: int, context: OrderContext) -> Selection:
        """`size` examples drawn without replacement, uniformly if there is no difficulty."""
        import torch

        num_images, generator = len(context.labels), context.generator
        if context.difficulty is None:
            return Selection(torch.randperm(num_images, generator=generator)[:size])
        # Drawing with weights w without replacement: take the smallest of Exp(1) / w (Efraimidis and Spirakis 2006).
        # With w = 1 / loss there is nothing to divide by, and a loss of zero needs no special care.
        waits = torch.empty(num_images, dtype=torch.float64).exponential_(generator=generator)
        chosen = torch.argsort(waits * context.difficulty.detach().cpu().double(), stable=True)[:size]
        return Selection(chosen[torch.randperm(size, generator=generator)])
