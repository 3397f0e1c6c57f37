"""Regularised evolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard
from search_spaces.dimensions import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Ageing evolution: the best of a few random members is mutated in one dimension, and the oldest member dies.

    Multiple objectives are compared by the sum of their ranks in the population.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Real et al. 2019, arXiv:1802.01548, algorithm 1, without crossover. Differences: a child that is a known "
            "point is drawn again, with more mutations after ten tries; multiple objectives are compared by rank sum; "
            "real numbers are mutated by a normal step with a standard deviation of a fifth of their range"
        ),
        cost="under a millisecond per suggestion, even at 10,000 trials",
    )
    population_size: Annotated[int, Field(ge=2)] = 32
    """Number of newest trials that may have children, and of random trials at the start."""
    tournament_size: Annotated[int, Field(ge=1)] = 8
    """Number of trials that are compared to choose the parent of a child."""

    def __post_init__(self) -> None:
        if self.tournament_size > self.population_size:
            raise ValueError(
                "`tournament_size` must not exceed `population_size`, but got "
                f"{self.tournament_size} > {self.population_size}. Lower it."
            )

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """`None`: all dimensions are supported."""
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":  # noqa: ARG002 - the protocol's signature
        from plugins.samplers.ageing_evolution import AgeingEvolution

        return AgeingEvolution(seed=seed, population_size=self.population_size, tournament_size=self.tournament_size)
