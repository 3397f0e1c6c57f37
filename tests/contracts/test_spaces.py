"""What every search space of topologies must do."""

import random

import pytest

from plugins.registry import available, create_space, parse_topology
from search_spaces.base import ImageTask, SearchSpace, Topology
from search_spaces.dimensions import Choice, Dimension, Integer

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)


@pytest.fixture(params=sorted(available("spaces")))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return create_space(request.param)


def _sample(space: SearchSpace, count: int = 20) -> list[Topology]:
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def _num_differences(space: SearchSpace, first: Topology, second: Topology) -> int:
    one, other = space.encode(first), space.encode(second)
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


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


def test_a_mutation_differs_in_exactly_one_dimension(space: SearchSpace) -> None:
    rng = random.Random(1)
    for topology in _sample(space):
        assert _num_differences(space, topology, space.mutate(topology, rng)) == 1


def test_neighbours_are_all_topologies_that_differ_in_one_dimension(space: SearchSpace) -> None:
    topology = _sample(space, 1)[0]
    neighbours = space.neighbours(topology)
    assert len(set(neighbours)) == len(neighbours)
    assert all(_num_differences(space, topology, neighbour) == 1 for neighbour in neighbours)
    if all(dimension.when is None for dimension in space.dimensions()):
        assert len(neighbours) == sum(len(_options(dimension)) - 1 for dimension in space.dimensions())


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


def test_a_wrong_text_is_answered_with_what_must_hold_and_what_was_found(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match=r"must .*but got"):
        space.parse("no topology")
