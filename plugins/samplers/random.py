"""Independent uniform sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import PluginCard
from search_spaces.dimensions import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Draws every dimension uniformly: the baseline that every other sampler must beat."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Bergstra and Bengio 2012, JMLR 13; Optuna's RandomSampler", cost="under a millisecond per suggestion"
    )

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """`None`: all dimensions are supported."""
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":  # noqa: ARG002 - the protocol's signature
        from plugins.samplers.uniform import UniformSampler

        return UniformSampler(seed=seed)
