"""Refined linear decay: a linear decay adapted to the gradient norms of an earlier training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import median
from typing import Annotated, Any, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard


def smoothed(norms: Sequence[float], fraction: float) -> list[float]:
    """The median of each norm and its neighbours, over a window of about `fraction` of all, reflected at the ends."""
    half, last = int(fraction * len(norms) // 2), len(norms) - 1
    return [
        median(norms[last - abs(last - abs(index))] for index in range(place - half, place + half + 1))
        for place in range(len(norms))
    ]


def refined_rates(norms: Sequence[float], *, power: float) -> list[tuple[float, float]]:
    """The refined schedule as points (progress, factor), between which it is linear; the largest factor is 1.

    The weight of a norm is `norm ** -power`, and the rate is the weight times the sum of all later weights. An epoch
    counts with half of its own weight in its middle.

    Args:
        norms: Mean gradient norm of each epoch.
        power: 2 for SGD, 1 for Adam.

    Source: Defazio et al. 2023, arXiv:2310.07831, theorem 3 and algorithm 1.
    """
    weights = [norm**-power for norm in norms]
    later = [sum(weights) - until for until in accumulate(weights)]
    rates = [weight * (weight / 2 + rest) for weight, rest in zip(weights, later, strict=True)]
    points = [(0.0, weights[0] * sum(weights))]
    points += [((place + 0.5) / len(rates), rate) for place, rate in enumerate(rates)]
    largest = max(rate for _, rate in points)
    return [*((progress, rate / largest) for progress, rate in points), (1.0, 0.0)]


@dataclass(frozen=True, kw_only=True)
class RefinedLinear:
    """Refined linear decay as a plug-in; `refined_rates` does the arithmetic.

    Constant norms give a linear decay. The warm-up of the recipe multiplies it.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Defazio et al. 2023, arXiv:2310.07831; from mean norms per epoch instead of norms per step, and for Adam "
            "from the Euclidean norm instead of the sum of absolute values"
        ),
        cost="an earlier training, with a dot product per step for its gradient norms",
        needs=("the gradient norms of an earlier training",),
    )
    norms: str | None = None
    """Mean gradient norm of each epoch of the earlier training, separated by commas: `0.92, 0.55, 0.61`."""
    stage: str | None = None
    """Instead of `norms`: name of an earlier `train` stage of the study, whose best trial has recorded the norms."""
    power: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Exponent of the norms: 1 for Adam and its relatives, 2 for SGD."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Window of the median filter that smooths the norms, as a fraction of their number."""

    def __post_init__(self) -> None:
        """Raise ValueError unless either norms or a stage are given."""
        if (self.norms is None) == (self.stage is None):
            given = "neither" if self.norms is None else "both"
            raise ValueError(f"give either `norms` or `stage`, the name of an earlier train stage, but got {given}.")
        if self.norms is not None:
            _parse(self.norms)

    def learned(self, norms: Sequence[float]) -> dict[str, Any]:
        """The settings with the norms of the stage instead of its name."""
        text = ", ".join(f"{norm:.6g}" for norm in norms)
        return {"norms": text, "power": self.power, "smoothing": self.smoothing}

    def factor_after(self, epochs: float, num_epochs: int) -> float:
        """The refined rate at this progress, as a fraction of its largest value.

        Raises:
            ValueError: The norms are not known, because `stage` is not replaced by its norms outside of a study.
        """
        progress = epochs / num_epochs
        (left, low), (right, high) = next(
            (one, other) for one, other in zip(self._points, self._points[1:], strict=False) if progress <= other[0]
        )
        return low + (high - low) * (progress - left) / (right - left)

    @cached_property
    def _points(self) -> list[tuple[float, float]]:
        if self.norms is None:
            raise ValueError(
                f"`stage: {self.stage}` of refined-linear must name a train stage of the same study. Outside of a "
                "study, give `norms`."
            )
        return refined_rates(smoothed(_parse(self.norms), self.smoothing), power=self.power)


def _parse(text: str) -> list[float]:
    """The numbers in a text.

    Raises:
        ValueError: They are not at least two positive numbers.
    """
    try:
        norms = [float(part) for part in text.split(",")]
    except ValueError:
        norms = []
    if len(norms) < 2 or not all(0 < norm < float("inf") for norm in norms):
        raise ValueError(f"`norms` must be at least 2 positive numbers, separated by commas, but got {text[:60]!r}.")
    return norms
