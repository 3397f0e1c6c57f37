"""All points of a space, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from plugins.protocols import PluginCard
from search_spaces.dimensions import Choice, Dimension, Point, Real, Scalar, is_active


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Full factorial: all points in a fixed order, independent of results. The last dimension changes fastest."""

    card: ClassVar[PluginCard] = PluginCard(
        source="full factorial design; unlike Optuna's GridSampler, ordered and without storing all points",
        cost="microseconds per suggestion",
        needs=("choices and whole numbers",),
    )

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """Ranges of real numbers are not supported."""
        for dimension in dimensions:
            if isinstance(dimension, Real):
                return (
                    f"grid needs choices and whole numbers, but {dimension.name} is a range of real numbers. "
                    "List the values to try, or use another sampler."
                )
        return None

    def points(self, dimensions: Sequence[Dimension]) -> Iterator[Point]:
        """All points, in order."""
        return _points(tuple(dimensions), {})


def _points(dimensions: tuple[Dimension, ...], point: Point) -> Iterator[Point]:
    if not dimensions:
        yield dict(point)
        return
    dimension, rest = dimensions[0], dimensions[1:]
    if not is_active(dimension, point):
        yield from _points(rest, point)
        return
    for value in _values(dimension):
        yield from _points(rest, {**point, dimension.name: value})


def _values(dimension: Dimension) -> Sequence[Scalar]:
    if isinstance(dimension, Choice):
        return dimension.options
    assert not isinstance(dimension, Real)  # `problem` rejects it
    return range(dimension.low, dimension.high + 1, dimension.step)
