"""Stop if the extrapolated learning curve is unlikely to end above the best result so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import CurvePoint, PluginCard
from plugins.stopping.extrapolation import extrapolate


@dataclass(frozen=True, kw_only=True)
class CurveExtrapolation:
    """Stops if P(metric after the last epoch > best) is below `chance`; `extrapolate` does the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Domhan et al. 2015, predictive termination, and Adriaensen et al. 2023, LC-PFN, arXiv:2310.20447, whose "
            "three families of curves it uses; exact Bayesian regression instead of Markov chains or a trained "
            "transformer. A jump when the learning rate decays is in none of the families: use it with rates that "
            "change slowly"
        ),
        cost="a few milliseconds per epoch",
        needs=("validation metric", "number of epochs"),
    )
    chance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Probability of ending above the best result below which training stops."""
    compare_with: Literal["study", "self"] = "study"
    """`study`: the best result with which an earlier trial of the study ended, or, if there is none, the best epoch of
    this training; `self`: always the latter."""
    min_epochs: Annotated[int, Field(ge=3)] = 5
    """Number of epochs before the first extrapolation."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.min_epochs

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The curve does not tell the number of epochs of the training.
        """
        if len(curve) < self.min_epochs:
            return None
        last = curve[-1]
        if last.num_epochs is None:
            raise ValueError(
                f"stopping curve-extrapolation: each point must have `num_epochs`, the epochs of the whole training, "
                f"but that of epoch {last.epoch} has none. Set it in the `CurvePoint`."
            )
        scores = [point.deciding for point in curve]
        if last.epoch >= last.num_epochs or not all(map(math.isfinite, scores)):
            return None
        is_of_study = self.compare_with == "study" and last.best is not None
        best = last.best if is_of_study and last.best is not None else max(scores)
        prediction = extrapolate(scores, num_epochs=last.num_epochs)
        chance = prediction.chance_above(best)
        if chance >= self.chance:
            return None
        low, high = (prediction.quantile(probability) for probability in (0.05, 0.95))
        sign = -1 if max(scores) <= 0 and min(scores) < 0 else 1  # scores of a loss are negative
        low, high = sorted((sign * low, sign * high))
        whose = "the best trial so far" if is_of_study else "the best epoch so far"
        return (
            f"the metric is expected to end between {low:.4g} and {high:.4g} in epoch {last.num_epochs} (with 90 % "
            f"probability), and better than {whose}, {sign * best:.4g}, with a probability of {100 * chance:.2g} % "
            f"only; the limit is {100 * self.chance:g} %"
        )
