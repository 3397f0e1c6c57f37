"""NSGA-II."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import PluginCard
from search_spaces.dimensions import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class Nsga2:
    """Genetic search with non-dominated sorting, designed for multiple objectives."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Deb et al. 2002, IEEE TEVC 6(2); Optuna's NSGAIISampler. Difference: the parents of a generation are "
            "chosen when its first trial is drawn, even if trials run concurrently"
        ),
        cost="under a millisecond per suggestion, even at 10,000 trials",
    )
    population_size: int = 16
    """Number of trials in a generation, at least 2."""

    def __post_init__(self) -> None:
        if self.population_size < 2:
            raise ValueError(f"`population_size` must be at least 2, but got {self.population_size}. Raise it.")

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """`None`: all dimensions are supported."""
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":  # noqa: ARG002 - the protocol's signature
        from plugins.samplers.nsga2_ordered import OrderedNsga2

        return OrderedNsga2(seed=seed, population_size=self.population_size)
