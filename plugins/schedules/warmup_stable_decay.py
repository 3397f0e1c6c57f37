"""Warm-up, stable, decay: the full learning rate until a final decay."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard
from search_spaces.decay_forms import DecayForm, decayed


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """A constant rate, then a decay over the last part of the training. `recipe.warmup` sets the warm-up.

    Source: Hu et al. 2024, arXiv:2404.06395.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Hu et al. 2024, arXiv:2404.06395; forms of the decay as in Hägele et al. 2024, arXiv:2405.18392",
        cost="nothing",
    )
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the steps after warm-up during which the rate falls."""
    form: DecayForm = "1-sqrt"
    """Form of the decay: `linear`, `cosine` (half a period), or `1-sqrt`, which falls fastest at its start."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate at the end."""

    def factor(self, progress: float) -> float:
        """1 in the stable part, then `floor + (1 - floor)` times the form of the decay."""
        done = (progress - (1 - self.decay)) / self.decay
        return 1.0 if done <= 0 else self.floor + (1 - self.floor) * decayed(self.form, min(done, 1.0))
