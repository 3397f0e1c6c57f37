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
    """Genetic search by non-dominated sorting; made for several objectives."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Deb et al. 2002, IEEE TEVC 6(2); Optuna's NSGAIISampler. Difference: the parents of a generation are "
            "chosen when its first trial is drawn, also where several trials run at once"
        ),
        cost="under a millisecond a suggestion, at 10,000 trials too",
    )
    population_size: int = 16
    """Trials in a generation, at least 2."""

    def __post_init__(self) -> None:
        if self.population_size < 2:
            raise ValueError(f"`population_size` must be at least 2, but got {self.population_size}.")

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """All dimensions are taken."""
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":  # noqa: ARG002 - the protocol's signature
        from plugins.samplers.nsga2_ordered import OrderedNsga2

        return OrderedNsga2(seed=seed, population_size=self.population_size)
