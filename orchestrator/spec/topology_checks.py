"""Whether topologies fit the images, and whether any topology of a space meets a study's limits."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from orchestrator.spec.problems import Problem, plain
from orchestrator.spec.stages import GrowStage, ScreenStage, StageSpec, TrainStage
from orchestrator.spec.yaml_source import KeyPath
from plugins import registry
from search_spaces.base import Growable, ImageTask, SearchSpace, Topology
from search_spaces.dimensions import Choice, Dimension, Point, is_active
from trainers.config import NOISE, DataConfig
from trainers.data.sources import BUILT_IN, DIGITS, noise_task

_DESCENT_STARTS = 3


def dimension_ends(dimension: Dimension) -> tuple[Any, ...]:
    """Both ends of a range, or every option of a choice."""
    return dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def topology_problems(
    stage: StageSpec, before: Sequence[StageSpec], data: DataConfig, at: KeyPath
) -> Iterator[Problem]:
    """Spaces and topologies that do not fit the images, and limits that no topology meets."""
    if isinstance(stage, ScreenStage):
        space = stage.search_space
        problem = space.problem(_first_topology(space), _smallest_task(data))
        if problem:
            size = data.image_size
            yield Problem((*at, "space"), f"must fit images of {size} pixels (data.image_size), but {problem}")
        else:
            yield from _limit_problems(stage, space, data, (*at, "limits"))
    if isinstance(stage, GrowStage):
        if stage.topology is not None:
            yield from topology_text_problems(stage.topology, data, (*at, "topology"))
        yield from _growth_problems(stage, before, data, at)
    if isinstance(stage, TrainStage):
        for index, text in enumerate(stage.topologies):
            yield from topology_text_problems(text, data, (*at, "topologies", index))


def topology_text_problems(text: str, data: DataConfig, at: KeyPath) -> Iterator[Problem]:
    """A topology that cannot be read or does not fit the images."""
    try:
        topology = registry.parse_topology(text)
    except ValueError as error:
        yield Problem(at, plain(error))
        return
    problem = space_of(topology).problem(topology, _smallest_task(data))
    if problem:
        yield Problem(at, f"must fit images of {data.image_size} pixels (data.image_size), but {problem}")


def _growth_problems(stage: GrowStage, before: Sequence[StageSpec], data: DataConfig, at: KeyPath) -> Iterator[Problem]:
    """Starts that cannot be scored at the reduced width, or are as large as the target already."""
    task = _smallest_task(data)
    for start in _growth_starts(stage, before):
        for cost, target in stage.targets().items():
            value = getattr(space_of(start).costs(start, task), cost)
            if stage.topology is not None and value >= target:
                yield Problem(
                    (*at, "target_params" if cost == "parameters" else "target_macs"),
                    f"must be above {value:,}, the {cost} of `topology`, but got {target:,}.",
                )
        problem = growth_start_problem(start, stage.reduction, task)
        if problem:
            yield Problem((*at, "reduction") if isinstance(start, Growable) else at, problem)


def growth_start_problem(topology: Topology, reduction: int, task: ImageTask) -> str | None:
    """Why growth cannot start from a topology and score networks of 1/`reduction` of its width, or `None`."""
    if not isinstance(topology, Growable):
        return f"must start from a topology that can be made deeper and wider, but {topology.id} cannot."
    reduced = at_reduced_width(topology, reduction)
    if reduced is None:
        unit = topology.width_unit
        problem: str | None = f"its width of {topology.width} must be at least {reduction} x {unit}."
    else:
        problem = space_of(topology).problem(reduced, task)
    if problem is None:
        return None
    return (
        f"must leave every start buildable at 1/{reduction} of its width, since that is what is scored, but "
        f"{topology.id} is not: {problem} Lower `reduction` or start wider."
    )


def at_reduced_width(topology: Topology, reduction: int) -> Topology | None:
    """The topology with 1/`reduction` of its width, in whole units; `None` where no unit would be left."""
    assert isinstance(topology, Growable)
    units = topology.width // (reduction * topology.width_unit)
    return topology.with_size(width=units * topology.width_unit) if units else None


def space_of(topology: Topology) -> type[SearchSpace]:
    """The search space of a topology, without settings."""
    space: type[SearchSpace] = registry.load("spaces", topology.id.partition(":")[0])
    return space


def _growth_starts(stage: GrowStage, before: Sequence[StageSpec]) -> tuple[Topology, ...]:
    """The topology that growth starts from; of a screen's, one for each value of each dimension."""
    if stage.topology is not None:
        return (registry.parse_topology(stage.topology),)
    space = next(other for other in reversed(before) if isinstance(other, ScreenStage)).search_space
    first = _first_topology(space)
    return (first, *space.neighbours(first))


def _limit_problems(stage: ScreenStage, space: SearchSpace, data: DataConfig, at: KeyPath) -> Iterator[Problem]:
    """Bounds that contradict each other or that no topology of the space meets."""
    for cost, low, high in stage.limits.bounds():
        suffix = "params" if cost == "parameters" else "macs"
        if low is not None and high is not None and low > high:
            yield Problem(
                (*at, f"min_{suffix}"), f"must be at most max_{suffix} = {high:,}, but got {low:,}. Swap them."
            )
        if high is not None:
            least, topology = extreme_cost(space, cost, _smallest_task(data), sign=1, enough=high)
            if least > high:
                yield Problem(
                    (*at, f"max_{suffix}"),
                    f"must be at least {least:,}, the {cost} of the smallest topology of the space ({topology.id}), "
                    f"but got {high:,}. Raise it or make the space smaller, for example its width.",
                )
        if low is not None:
            most, topology = extreme_cost(space, cost, _largest_task(data), sign=-1, enough=low)
            if most < low:
                yield Problem(
                    (*at, f"min_{suffix}"),
                    f"must be at most {most:,}, the {cost} of the largest topology of the space ({topology.id}), "
                    f"but got {low:,}. Lower it or make the space larger, for example its width.",
                )


def extreme_cost(
    space: SearchSpace, cost: Literal["parameters", "macs"], task: ImageTask, *, sign: Literal[1, -1], enough: int
) -> tuple[int, Topology]:
    """The smallest (`sign=1`) or largest (`sign=-1`) cost that coordinate descent finds, and where.

    Ends at the first topology on the right side of `enough`. In a space whose dimensions each raise or lower the cost
    whatever the others are, such as As-ViT's, one descent finds the extreme; further starts serve other spaces.
    """
    rng = random.Random(0)
    starts = [_first_topology(space), *(space.sample(rng) for _ in range(_DESCENT_STARTS - 1))]
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


def _first_topology(space: SearchSpace) -> Topology:
    point: Point = {}
    for dimension in space.dimensions():
        if is_active(dimension, point):
            point[dimension.name] = dimension_ends(dimension)[0]
    return space.decode(point)


def _smallest_task(data: DataConfig) -> ImageTask:
    """The task of a built-in source, else that with the fewest costs: only images show their classes and channels."""
    if data.source == DIGITS:
        return ImageTask(image_size=data.image_size, in_channels=1, num_classes=10)
    if data.source == NOISE:
        return noise_task(data)
    return ImageTask(image_size=data.image_size, in_channels=1, num_classes=2)


def _largest_task(data: DataConfig) -> ImageTask:
    if data.source in BUILT_IN:
        return _smallest_task(data)
    return ImageTask(image_size=data.image_size, in_channels=3, num_classes=10_000)
