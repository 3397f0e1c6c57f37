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
    """Ageing evolution: the best of a random few is mutated in one dimension; the oldest of the population dies.

    Several objectives are compared by the sum of their ranks in the population.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Real et al. 2019, arXiv:1802.01548, algorithm 1, without crossover. Differences: a child that is a known "
            "point is drawn again, with more mutations after ten tries; several objectives by rank sum; a real number "
            "moves by a normal step of a fifth of its range"
        ),
        cost="under a millisecond a suggestion, at 10,000 trials too",
    )
    population_size: Annotated[int, Field(ge=2)] = 32
    """Newest trials that may have children; as many random ones come first."""
    tournament_size: Annotated[int, Field(ge=1)] = 8
    """Trials of the population that are compared for each child."""

    def __post_init__(self) -> None:
        if self.tournament_size > self.population_size:
            raise ValueError(
                "`tournament_size` must not exceed `population_size`, but got "
                f"{self.tournament_size} > {self.population_size}. Lower it."
            )

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """All dimensions are taken."""
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":  # noqa: ARG002 - the protocol's signature
        from plugins.samplers.ageing_evolution import AgeingEvolution

        return AgeingEvolution(seed=seed, population_size=self.population_size, tournament_size=self.tournament_size)
