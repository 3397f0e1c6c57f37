"""LCSC: coefficients of a sum of checkpoints, found by evolution on the validation images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.averaging.arithmetic import check_alike, every_nth, num_spanned, weighted_sum
from plugins.averaging.ema import ema_weights
from plugins.averaging.greedy_soup import goodness
from plugins.protocols import Evaluated, PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor

_EMA_DECAYS = (0.5, 0.8)
"""Decays of the moving averages among the first candidates."""


def search_coefficients(
    count: int,
    judge: Callable[[Sequence[float]], tuple[float, float]],
    *,
    num_evaluations: int,
    population: int,
    deviation: float,
    seed: int,
) -> list[float]:
    """Search for the coefficients of a sum of checkpoints; they add up to 1 and may be negative.

    The first candidates are the newest checkpoint, the mean and moving averages. Then each candidate is a random mix of
    two of the best ones with normal noise, and replaces the worst of the `population` best if it is better.

    Args:
        count: Number of checkpoints, oldest first.
        judge: Returns a sort key of coefficients that is larger for a better sum.
        num_evaluations: Largest number of calls of `judge`.
        population: Number of candidates to choose parents from.
        deviation: Standard deviation of the noise of each coefficient.
        seed: Seed of the random numbers.

    Returns:
        The best coefficients; the first of equally good ones.
    """
    first = [[0.0] * (count - 1) + [1.0], [1 / count] * count, *(ema_weights(count, decay=one) for one in _EMA_DECAYS)]
    distinct = [one for index, one in enumerate(first) if one not in first[:index]]
    found = [(judge(one), one) for one in distinct[:num_evaluations]]
    random = Random(seed)
    for _ in range(num_evaluations - len(found) if count > 1 else 0):
        found = sorted(found, key=lambda one: one[0], reverse=True)[:population]  # stable: of equals, the earlier first
        one, other = (random.choice(found)[1] for _ in range(2))
        share = random.random()
        noise = [random.gauss(0.0, deviation) for _ in range(count)]
        centre = sum(noise) / count
        child = [share * a + (1 - share) * b + n - centre for a, b, n in zip(one, other, noise, strict=True)]
        found.append((judge(child), child))
    return max(found, key=lambda one: one[0])[1]


@dataclass(frozen=True, kw_only=True)
class Lcsc:
    """LCSC as a plug-in; `search_coefficients` does the search.

    It is chosen on the validation part among many candidates, so its validation metric is optimistic.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Liu et al. 2024, arXiv:2404.02241; their search is not published: ours keeps a few candidates, mixes two "
            "of them and adds noise. The study's metric decides instead of the FID, then the loss"
        ),
        cost="up to `evaluations` forward passes of the validation images, with `window` checkpoints in memory",
        needs=("validation images",),
    )
    window: Annotated[int, Field(ge=1)] = 5
    """Number of checkpoints in the sum."""
    spacing: Annotated[int, Field(ge=1)] = 1
    """Distance between the checkpoints: every `spacing`-th one, counted back from the newest."""
    evaluations: Annotated[int, Field(ge=1)] = 40
    """Largest number of evaluations."""
    population: Annotated[int, Field(ge=1)] = 6
    """Number of best candidates from which new ones are made."""
    deviation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Standard deviation of the noise that each coefficient gets."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search."""

    @property
    def num_needed(self) -> int:
        """`(window - 1) * spacing + 1`."""
        return num_spanned(self.window, self.spacing)

    def average_by(
        self, checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
    ) -> "dict[str, Tensor]":
        """The best sum of every `spacing`-th of the newest checkpoints.

        Raises:
            ValueError: There are fewer than `num_needed` checkpoints, or they differ in keys or shapes.
        """
        chosen = every_nth(checkpoints, window=self.window, spacing=self.spacing)
        check_alike(chosen)
        coefficients = search_coefficients(
            self.window,
            lambda tried: goodness(evaluate(weighted_sum(chosen, tried))),
            num_evaluations=self.evaluations,
            population=self.population,
            deviation=self.deviation,
            seed=self.seed,
        )
        return weighted_sum(chosen, coefficients)
