"""Cyclical Curriculum Learning: passes over the training set shrink and grow, and prefer easy examples."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.curricula.difficulty import COST_OF_CHOICE, ByDifficulty
from plugins.protocols import OrderContext, PluginCard, Selection


def cycle_sizes(num_epochs: float, *, start: float, end: float, alpha: float) -> tuple[float, ...]:
    """Sizes of the passes: from `start` up to `end` by the factor `1 / alpha`, down again by `alpha`, and so on.

    Args:
        num_epochs: Sum of the sizes, in visits of the whole training set. The last pass is shortened to fit.
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
class Cyclical(ByDifficulty):
    """CCL as a plug-in: sizes from `cycle_sizes`, examples drawn with a probability proportional to 1 / loss."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Kesgin and Amasyali 2022, arXiv:2202.05531. Difference: by default, the difficulty of an example is its "
            "loss under the model being trained, measured at the start of each epoch (equal for all examples in the "
            "first epoch); the paper measures it with a separate model, trained beforehand, as does `difficulty: "
            "trained-loss`, with `difficulty_runs: 1` and as many `difficulty_epochs` as the training"
        ),
        cost=COST_OF_CHOICE,
        needs=("difficulty",),
    )
    start: Annotated[float, Field(ge=0.01, le=1)] = 0.25
    """Smallest pass, as a fraction of the training set."""
    end: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    """Largest pass."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor between the sizes of consecutive passes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start > self.end:
            raise ValueError(
                f"`start` must not exceed `end`, but got start={self.start}, end={self.end}. Lower `start`."
            )

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes that rise and fall between `start` and `end`."""
        return cycle_sizes(num_epochs, start=self.start, end=self.end, alpha=self.alpha)

    def select(self, size: int, context: OrderContext) -> Selection:
        """Draw `size` examples without replacement, uniformly if the difficulty is unknown."""
        import torch

        num_images, generator = len(context.labels), context.generator
        if context.difficulty is None:
            return Selection(torch.randperm(num_images, generator=generator)[:size])
        # To draw with weights w without replacement, take the smallest of Exp(1) / w (Efraimidis and Spirakis 2006).
        # For w = 1 / loss, the quotient is a product, so a loss of zero needs no special case.
        waits = torch.empty(num_images, dtype=torch.float64).exponential_(generator=generator)
        chosen = torch.argsort(waits * context.difficulty.detach().cpu().double(), stable=True)[:size]
        return Selection(chosen[torch.randperm(size, generator=generator)])
