"""Checks that topologies fit the images, and the extremes of a space."""

import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

from orchestrator.spec.problems import Problem, plain
from plugins import registry
from search_spaces.base import ImageTask, SearchSpace, Topology
from search_spaces.dimensions import Choice, Dimension, Point, is_active
from search_spaces.shape_rules import ShapeRules
from trainers.config import NOISE, DataConfig
from trainers.data.sources import BUILT_IN, DIGITS, noise_task
from trainers.yaml_source import KeyPath

_DESCENT_STARTS = 3


def dimension_ends(dimension: Dimension) -> tuple[Any, ...]:
    """Both ends of a range, or every option of a choice."""
    return dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def topology_text_problems(text: str, data: DataConfig, at: KeyPath) -> Iterator[Problem]:
    """Yield a problem if a topology cannot be read or does not fit the images."""
    try:
        topology = registry.parse_topology(text)
    except ValueError as error:
        yield Problem(at, plain(error))
        return
    problem = search_space_of(topology).problem(topology, smallest_task(data))
    if problem:
        yield Problem(at, f"must fit images of {data.image_size} pixels (data.image_size), but {problem}")


def search_space_of(topology: Topology) -> type[SearchSpace]:
    """The class of the search space that a topology belongs to."""
    space: type[SearchSpace] = registry.load("spaces", topology.id.partition(":")[0])
    return space


def extreme_cost(
    space: SearchSpace, cost: Literal["parameters", "macs"], task: ImageTask, *, sign: Literal[1, -1], enough: int
) -> tuple[int, Topology]:
    """The smallest (`sign=1`) or largest (`sign=-1`) cost that coordinate descent finds, with its topology.

    The descent ends at the first topology that satisfies `enough`. If each dimension always moves the cost in the same
    direction, as in As-ViT's space, one descent finds the extreme; the additional starts are for other spaces.
    """
    rng = random.Random(0)
    starts = [first_topology(space), *(space.sample(rng) for _ in range(_DESCENT_STARTS - 1))]
    ends = []

    def signed(topology: Topology) -> int:
        costs = space.costs(topology, task)
        return sign * (costs.parameters if cost == "parameters" else costs.macs)

    for start in starts:
        ends.append(_descend(space, start, signed, enough=sign * enough))
        if ends[-1][0] <= sign * enough:
            break
    value, topology = min(ends, key=lambda end: end[0])
    return sign * value, topology


def shape_problem(space: SearchSpace, rules: ShapeRules) -> str | None:
    """Why a space has no topology that keeps shape rules; `None` if a search for one finds it.

    The search begins at the first topology and at each of its neighbours, and follows neighbours that break the rules
    at fewer widths. It finds one if no more than two dimensions must be right together.
    """

    def num_broken(topology: Topology) -> int:
        return len(rules.broken(topology))

    first = first_topology(space)
    try:
        ends = [_descend(space, first, num_broken, enough=0)]
        for start in space.neighbours(first) if ends[0][0] else ():
            ends.append(_descend(space, start, num_broken, enough=0))
            if not ends[-1][0]:
                return None
    except ValueError as error:
        return plain(error)
    problem = rules.problem(min(ends, key=lambda end: end[0])[1])
    return None if problem is None else f"must be kept by a topology of the space: {problem}"


def _descend(
    space: SearchSpace, start: Topology, value: Callable[[Topology], int], *, enough: int
) -> tuple[int, Topology]:
    best, topology = value(start), start
    while best > enough:
        candidates = [(value(neighbour), neighbour) for neighbour in space.neighbours(topology)]
        least, nearest = min(candidates, key=lambda pair: pair[0])
        if least >= best:
            break
        best, topology = least, nearest
    return best, topology


def first_topology(space: SearchSpace) -> Topology:
    point: Point = {}
    for dimension in space.dimensions():
        if is_active(dimension, point):
            point[dimension.name] = dimension_ends(dimension)[0]
    return space.decode(point)


def smallest_task(data: DataConfig) -> ImageTask:
    """The task of a built-in source; for other sources the cheapest possible task.

    Their real numbers of classes and channels are known only after reading the images.
    """
    if data.source == DIGITS:
        return ImageTask(image_size=data.image_size, in_channels=1, num_classes=10)
    if data.source == NOISE:
        return noise_task(data)
    return ImageTask(image_size=data.image_size, in_channels=1, num_classes=2)


def largest_task(data: DataConfig) -> ImageTask:
    if data.source in BUILT_IN:
        return smallest_task(data)
    return ImageTask(image_size=data.image_size, in_channels=3, num_classes=10_000)
