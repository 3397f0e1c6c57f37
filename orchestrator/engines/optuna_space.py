"""Dimensions of a search space as Optuna's distributions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.dimensions import Choice, Dimension, Integer, Point, Scalar, count_points


class SampledDimension(NamedTuple):
    """A dimension and its distribution, prepared once for all draws."""

    dimension: Dimension
    name: str
    distribution: BaseDistribution
    is_single: bool
    """Whether there is only one value."""


class OptunaSpace:
    """A search space for Optuna.

    Args:
        dimensions: Dimensions of the space, parents before the dimensions that depend on them.
    """

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self.dimensions = tuple(dimensions)
        self.num_points = count_points(self.dimensions)
        """Number of points; `None` if a dimension is real or conditional."""
        self._distributions = {dimension.name: _distribution(dimension) for dimension in self.dimensions}
        self.sampled = [
            SampledDimension(one, one.name, self._distributions[one.name], self._distributions[one.name].single())
            for one in self.dimensions
        ]

    def distributions_of(self, point: Point) -> dict[str, BaseDistribution]:
        """The distributions of a point's dimensions.

        Raises:
            ValueError: The point is not in this space.
        """
        found = {name: self._distributions[name] for name in self._distributions if name in point}
        if len(found) != len(point):
            raise ValueError(
                f"the point of a stored trial must have dimensions of the search space only "
                f"({', '.join(self._distributions)}), but got {', '.join(point)}. Search the changed space in a new "
                "study."
            )
        for name, distribution in found.items():
            if not distribution._contains(distribution.to_internal_repr(point[name])):
                raise ValueError(
                    f"{name}: the value of a stored trial must lie in the search space, {distribution}, but got "
                    f"{point[name]!r}. Search the changed space in a new study."
                )
        return found


def only_value(dimension: Dimension) -> Scalar:
    """The only value of a dimension with a single value."""
    return dimension.options[0] if isinstance(dimension, Choice) else dimension.low


def as_scalar(dimension: Dimension, value: Any) -> Scalar:
    """A sampler's value as a plain Python value; it may be one of numpy's."""
    if isinstance(dimension, Choice):
        chosen: Scalar = value
        return chosen
    return int(value) if isinstance(dimension, Integer) else float(value)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.options)
    if isinstance(dimension, Integer):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
