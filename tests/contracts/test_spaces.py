"""What every search space of topologies must do."""

import random

import pytest

from plugins.registry import available, create_space, parse_topology
from search_spaces.base import Growable, ImageTask, SearchSpace, Topology
from search_spaces.dimensions import Choice, Dimension, Integer, is_active

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)


SEARCHED = {"qk_norm": [False, True], "merged_tokens": [3, 1], "grn": True}
"""Options of blocks, two of them searched."""


@pytest.fixture(
    params=[
        pytest.param((name, options), id=f"{name} with options" if options else name)
        for name in sorted(available("spaces"))
        for options in ({}, SEARCHED)
    ]
)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    name, options = request.param
    return create_space(name, {"options": options})


def _sample(space: SearchSpace, count: int = 20) -> list[Topology]:
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def _num_differences(space: SearchSpace, first: Topology, second: Topology) -> int:
    """Dimensions with two values; those that only one of them has depend on one that differs."""
    one, other = space.encode(first), space.encode(second)
    conditional = {dimension.name for dimension in space.dimensions() if dimension.when is not None}
    assert one.keys() ^ other.keys() <= conditional
    return sum(one[name] != other[name] for name in one.keys() & other.keys())


def _options(dimension: Dimension) -> list[object]:
    if isinstance(dimension, Choice):
        return list(dimension.options)
    assert isinstance(dimension, Integer), "topologies have discrete dimensions"
    return list(range(dimension.low, dimension.high + 1, dimension.step))


def test_it_has_the_members_of_a_search_space(space: SearchSpace) -> None:
    assert isinstance(space, SearchSpace)


def test_dimension_names_are_flat_and_differ(space: SearchSpace) -> None:
    names = [dimension.name for dimension in space.dimensions()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("topology.") for name in names)


def test_a_seed_always_gives_the_same_topologies_and_they_vary(space: SearchSpace) -> None:
    assert _sample(space) == _sample(space)
    assert len({topology.id for topology in _sample(space)}) > 1


def test_points_and_topologies_correspond(space: SearchSpace) -> None:
    options = {dimension.name: _options(dimension) for dimension in space.dimensions()}
    for topology in _sample(space):
        point = space.encode(topology)
        assert space.decode(point) == topology
        assert all(value in options[name] for name, value in point.items())


def test_a_point_has_the_active_dimensions_and_no_other_key_changes_it(space: SearchSpace) -> None:
    others = {dimension.name: _options(dimension)[-1] for dimension in space.dimensions()}
    for topology in _sample(space):
        point = space.encode(topology)
        assert list(point) == [one.name for one in space.dimensions() if is_active(one, point)]
        assert space.decode({**others, **point, "recipe.learning_rate": 0.1}) == topology


def test_a_point_outside_the_space_is_refused(space: SearchSpace) -> None:
    for topology in _sample(space, 3):
        point = space.encode(topology)
        for name in point:
            with pytest.raises(ValueError, match=r"must .*but got"):
                space.decode({other: value for other, value in point.items() if other != name})
            with pytest.raises(ValueError, match=r"must .*but got"):
                space.decode({**point, name: 0})


def test_plain_fields_of_a_topology_read_back(space: SearchSpace) -> None:
    for topology in _sample(space):
        assert isinstance(topology, space.topology_type)
        assert space.topology_type.model_validate(topology.model_dump(mode="json")) == topology


def test_an_id_reads_back_as_the_same_topology(space: SearchSpace) -> None:
    for topology in _sample(space):
        assert parse_topology(topology.id) == topology
        assert space.parse(topology.text) == topology


def test_a_description_is_flat_and_has_the_same_keys_for_all(space: SearchSpace) -> None:
    described = [space.describe(topology) for topology in _sample(space)]
    assert len({tuple(one) for one in described}) == 1
    assert all(name.startswith("topology.") for name in described[0])
    assert all(isinstance(value, bool | int | float | str | None) for one in described for value in one.values())
    assert {dimension.name for dimension in space.dimensions()} <= set(described[0])
    for topology, one in zip(_sample(space), described, strict=True):
        assert space.encode(topology).items() <= one.items()


def test_a_mutation_differs_in_exactly_one_dimension(space: SearchSpace) -> None:
    rng = random.Random(1)
    for topology in _sample(space):
        assert _num_differences(space, topology, space.mutate(topology, rng)) == 1


def test_neighbours_are_all_topologies_that_differ_in_one_dimension(space: SearchSpace) -> None:
    topology = _sample(space, 1)[0]
    neighbours = space.neighbours(topology)
    assert len(set(neighbours)) == len(neighbours)
    assert all(_num_differences(space, topology, neighbour) == 1 for neighbour in neighbours)
    active = [dimension for dimension in space.dimensions() if dimension.name in space.encode(topology)]
    assert len(neighbours) == sum(len(_options(dimension)) - 1 for dimension in active)


def test_a_child_has_each_value_from_either_parent(space: SearchSpace) -> None:
    rng = random.Random(2)
    first, second = _sample(space, 2)
    parents = space.encode(first), space.encode(second)
    children = [space.crossover(first, second, rng) for _ in range(10)]
    assert len({child.id for child in children}) > 1
    for child in children:
        assert all(value in [parent.get(name) for parent in parents] for name, value in space.encode(child).items())


def test_costs_are_whole_positive_numbers_and_grow_with_the_classes(space: SearchSpace) -> None:
    for topology in _sample(space, 5):
        if space.problem(topology, TASK) is None:
            costs = space.costs(topology, TASK)
            more = space.costs(topology, TASK.model_copy(update={"num_classes": 20}))
            assert isinstance(costs.parameters, int)
            assert isinstance(costs.macs, int)
            assert 0 < costs.parameters < more.parameters
            assert 0 < costs.macs < more.macs


def test_an_impossible_image_size_is_answered_with_a_possible_one(space: SearchSpace) -> None:
    task = TASK.model_copy(update={"image_size": 3})
    for topology in _sample(space, 3):
        problem = space.problem(topology, task)
        assert problem is not None
        possible = int(problem.rpartition("Use ")[2].split(" or ")[-1].rstrip("."))
        assert space.problem(topology, task.model_copy(update={"image_size": possible})) is None


def test_topologies_grow_in_every_stage_and_in_width(space: SearchSpace) -> None:
    for topology in _sample(space, 5):
        assert isinstance(topology, Growable), "the stage `grow` needs it"
        assert topology.with_size() == topology
        wider = topology.with_size(width=topology.width + topology.width_unit)
        assert (wider.width, wider.depths) == (topology.width + topology.width_unit, topology.depths)
        assert topology.width % topology.width_unit == 0
        deeper = [
            topology.with_size(depths=[depth + (place == stage) for place, depth in enumerate(topology.depths)])
            for stage in range(len(topology.depths))
        ]
        assert all(sum(one.depths) == sum(topology.depths) + 1 for one in deeper)
        for grown in (wider, *deeper):
            assert space.problem(grown, TASK) is None
            assert space.costs(grown, TASK).parameters > space.costs(topology, TASK).parameters
            assert space.costs(grown, TASK).macs > space.costs(topology, TASK).macs
            assert parse_topology(grown.id) == grown
        with pytest.raises(ValueError, match=r"must .*but got"):
            topology.with_size(depths=[*topology.depths, 1])
        with pytest.raises(ValueError, match="0"):
            topology.with_size(width=0)


def test_a_topology_of_another_size_has_no_point(space: SearchSpace) -> None:
    for topology in _sample(space, 3):
        assert isinstance(topology, Growable)
        with pytest.raises(ValueError, match=r"space.*but got"):
            space.encode(topology.with_size(width=7 * topology.width))


def test_a_wrong_text_is_answered_with_what_must_hold_and_what_was_found(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match=r"must .*but got"):
        space.parse("no topology")
