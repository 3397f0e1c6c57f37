"""Independent uniform sampling."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Draws every dimension uniformly; the baseline that every other sampler has to beat."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Bergstra and Bengio 2012, JMLR 13; Optuna's RandomSampler", cost="under a millisecond a suggestion"
    )

    def build(self, seed: int) -> "BaseSampler":
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)
