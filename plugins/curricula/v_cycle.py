"""A V-cycle: in the middle of the training, a network of half the size is trained and mixed back in."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Now, PluginCard
from search_spaces.base import Topology
from search_spaces.smaller import Reduction, halved
from search_spaces.step_settings import StepSettings


def smaller_epochs(num_epochs: int, *, start: float, until: float) -> range:
    """Numbers of the epochs of the smaller network: after at least one of the whole one, and at least one.

    Args:
        num_epochs: Number of epochs of the training.
        start: Fraction of the epochs before them, rounded.
        until: Fraction of the epochs after which the whole network goes on, rounded.
    """
    first = max(1, round(start * num_epochs))
    return range(first + 1, max(first + 1, round(until * num_epochs)) + 1)


@dataclass(frozen=True, kw_only=True)
class VCycle:
    """Averages pairs of blocks and of channels into a smaller network, trains it, and interpolates with its weights."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Zou et al. 2024, A Multi-Level Framework for Accelerating Training Transformer Models, arXiv:2404.07999, "
            "with two levels. Differences: channels of heads and of MLPs are paired by the factors of each dimension, "
            "and queries and keys of heads of another width are scaled so that the widened network computes what the "
            "smaller one does. The first epochs are a fraction of all, and each level begins with a new optimizer "
            "state and goes on with the schedule"
        ),
        cost="negative: about a quarter of the work per block and half of the blocks in the smaller network. The "
        "weights of both networks are in memory",
        needs=("a topology whose halves exist",),
    )
    packs: ClassVar[bool] = False
    relation: ClassVar[Literal["average"]] = "average"
    start: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the epochs with the whole network before the smaller one is made; at least one epoch."""
    until: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of the epochs after which the whole network goes on; at least one epoch of the smaller one."""
    interpolation: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the smaller network's weights in those with which the whole network goes on."""
    reduction: Reduction = "both"
    """What is halved: the blocks of each stage, the width, or both."""
    rate_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor of the learning rate of the smaller network; the authors use up to 4."""

    def __post_init__(self) -> None:
        if self.start >= self.until:
            raise ValueError(
                f"`start` must be below `until`, but got start={self.start}, until={self.until}. Lower `start`."
            )

    @property
    def changes(self) -> frozenset[str]:
        """Which network is trained; the learning rate if that of the smaller one differs."""
        return frozenset({"level"} if self.rate_factor == 1 else {"level", "learning_rate"})

    def smaller(self, topology: Topology) -> Topology:
        """Half of the blocks, the width, or both.

        Raises:
            ValueError: There is no such topology, or blocks that become one differ.
        """
        return halved(topology, self.reduction)

    def trains_smaller_in(self, epoch: int, num_epochs: int) -> bool:
        """Whether an epoch lies between `start` and `until`."""
        return epoch in smaller_epochs(num_epochs, start=self.start, until=self.until)

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """The smaller network between `start` and `until`."""
        if not self.trains_smaller_in(now.epoch, now.num_epochs):
            return settings
        return replace(settings, level=1, learning_rate=settings.learning_rate * self.rate_factor)
