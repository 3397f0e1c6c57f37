"""Smallest and largest costs of a space, compared with the limits of a study."""

import random
from typing import Literal

import pytest

from orchestrator.spec.topology_checks import extreme_cost
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("cost", ["parameters", "macs"])
def test_no_sampled_topology_lies_outside_the_extremes(cost: Literal["parameters", "macs"], width: int) -> None:
    space = AsViTSpace(width=width, depths=(1, 2, 1, 1))
    task = ImageTask(image_size=64, in_channels=3, num_classes=10)
    least, smallest = extreme_cost(space, cost, task, sign=1, enough=0)
    most, largest = extreme_cost(space, cost, task, sign=-1, enough=10**15)
    rng = random.Random(5)
    sampled = [getattr(space.costs(space.sample(rng), task), cost) for _ in range(2000)]
    assert least <= min(sampled) < max(sampled) <= most
    assert getattr(space.costs(smallest, task), cost) == least
    assert getattr(space.costs(largest, task), cost) == most


def test_the_search_ends_where_a_limit_is_met() -> None:
    space = AsViTSpace(width=16)
    task = ImageTask(image_size=32, in_channels=1, num_classes=10)
    most, _ = extreme_cost(space, "parameters", task, sign=-1, enough=10**9)
    met, topology = extreme_cost(space, "parameters", task, sign=-1, enough=300_000)
    assert 300_000 <= met < most
    assert space.costs(topology, task).parameters == met
