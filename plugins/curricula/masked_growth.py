"""Masked growth: training begins with some of the blocks; the others are added with a factor that rises from 0."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Now, PluginCard
from search_spaces.base import Topology
from search_spaces.smaller import with_fewer_blocks
from search_spaces.step_settings import StepSettings


def mask_factor(progress: float, *, start: float, ramp: float) -> float:
    """Factor of the outputs of the added blocks: 0 at `start`, 1 from `start + ramp` on, linear between.

    Args:
        progress: Completed fraction of the training.
        start: Progress at which the blocks are added.
        ramp: Fraction of the training in which the factor rises.

    Source: Yao et al. 2023, arXiv:2305.02869, section 3.
    """
    if ramp == 0:
        return 1.0
    return min(max((progress - start) / ramp, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class MaskedGrowth:
    """Trains the first blocks of each stage, then all. When blocks are added, the network still computes the same.

    The factor rises from 0 at the first step of the epoch in which they are added, unless `ramp` is 0. With an order
    whose passes end a little after an epoch, it begins as much later on the ramp.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Yao et al. 2023, Masked Structural Growth, arXiv:2305.02869. Differences: it grows the number of blocks, "
            "and not widths, for which layer norms would need statistics of a part of the channels; once, at the start "
            "of an epoch; and new blocks follow the others of their stage. The optimizer keeps its state of the first "
            "blocks, as there"
        ),
        cost="negative: fewer blocks are computed at first. The weights of both networks are in memory",
        needs=("a topology with at least two blocks in a stage",),
    )
    packs: ClassVar[bool] = False
    relation: ClassVar[Literal["part"]] = "part"
    interpolation: ClassVar[float] = 1.0
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the blocks of each stage that are trained at first, rounded; at least one block."""
    until: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Fraction of the epochs with these blocks only; at least one epoch."""
    ramp: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Fraction of the training in which the outputs of the added blocks rise from 0 to their full size,
    counted from the epoch in which they are added; at most what is left of the training. With 0, they are added at full
    size."""

    def __post_init__(self) -> None:
        if self.until + self.ramp > 1:
            raise ValueError(
                "`until` and `ramp` must add up to at most 1, so that training ends with the whole network, but got "
                f"{self.until} + {self.ramp}. Lower one of them."
            )

    @property
    def changes(self) -> frozenset[str]:
        """Which network is trained, and the factor of the added blocks."""
        return frozenset({"level", "grown"})

    def smaller(self, topology: Topology) -> Topology:
        """The first blocks of each stage.

        Raises:
            ValueError: There are none to leave out.
        """
        return with_fewer_blocks(topology, self.share)

    def trains_smaller_in(self, epoch: int, num_epochs: int) -> bool:
        """Whether an epoch begins before `until`."""
        return (epoch - 1) / num_epochs < self.until

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """The smaller network in the first epochs, then the factor of the added blocks."""
        if self.trains_smaller_in(now.epoch, now.num_epochs):
            return replace(settings, level=1)
        start = self._start(now.num_epochs)
        return replace(settings, grown=mask_factor(now.progress, start=start, ramp=min(self.ramp, 1 - start)))

    def _start(self, num_epochs: int) -> float:
        """Progress at the start of the epoch in which the blocks are added, which is at or after `until`."""
        return sum(self.trains_smaller_in(epoch, num_epochs) for epoch in range(1, num_epochs + 1)) / num_epochs
