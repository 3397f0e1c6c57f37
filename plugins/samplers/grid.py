"""Every point, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from plugins.protocols import PluginCard
from search_spaces.dimensions import Choice, Dimension, Point, Real, Scalar, is_active


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Full factorial: all points in a fixed order, the last dimension changing fastest. Results change nothing."""

    card: ClassVar[PluginCard] = PluginCard(
        source="the plain full factorial; unlike Optuna's GridSampler, in order and without keeping all points",
        cost="microseconds a suggestion",
        needs=("choices and whole numbers",),
    )

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """A range of real numbers has no end of points."""
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
    assert not isinstance(dimension, Real)  # `problem` refuses it
    return range(dimension.low, dimension.high + 1, dimension.step)
