"""Smallest and largest costs of a space, compared with the limits of a study, and its shape rules."""

import random
import re
from typing import Literal

import pytest

from orchestrator.spec.topology_checks import extreme_cost, shape_problem
from plugins.registry import available, create_space, parse_topology
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask, Topology
from search_spaces.shape_rules import ShapeRules, width_step


class Plain(Topology):
    """A topology that does not tell its widths."""

    @property
    def id(self) -> str:
        return "plain:1"


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


# --- shape rules ---

RULES = ShapeRules(width=64, head_width=8)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,64", None),
        ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,32", "each width must be a multiple of 64, .* has a width of 32"),
        ("autoformer:4,4|4,3|192,16", None),
        ("autoformer:4,3.5|192,16", "has a width of 672"),
        ("autoformer:2,4|192,16,60", "each width of a head must be a multiple of 8, .* has a width of a head of 60"),
        ("pit:1,4|1,8|1,8|2,16", None),
        ("pit:1,2|1,4|1,8|2,16", "has a width of 32"),
    ],
)
def test_a_topology_that_breaks_a_rule_is_told_where(text: str, problem: str | None) -> None:
    found = RULES.problem(parse_topology(text))
    assert found is None if problem is None else re.search(problem, str(found))
    assert ShapeRules().problem(parse_topology(text)) is None


@pytest.mark.parametrize("space", sorted(available("spaces")))
def test_a_space_with_a_topology_that_keeps_the_rules_is_known_as_such(space: str) -> None:
    settings = {"as-vit": {"width": 64}}.get(space, {})
    assert shape_problem(create_space(space, settings), RULES) is None
    assert shape_problem(create_space(space, settings), ShapeRules()) is None
    impossible = shape_problem(create_space(space, settings), ShapeRules(width=1024))
    assert "each width must be a multiple of 1024" in str(impossible)


def test_rules_may_be_relaxed_only() -> None:
    assert ShapeRules(width=32).contains(ShapeRules(width=64, head_width=8))
    assert not ShapeRules(width=64).contains(ShapeRules(width=32))
    assert not ShapeRules(width=1, head_width=8).contains(ShapeRules(width=64))


@pytest.mark.parametrize(
    ("text", "multiple", "step"),
    [
        ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,64", 4, 64),
        ("autoformer:3,3.5|4,4|192,16", 12, 384),  # 3.5 times a width is a multiple of 64 only if the width is of 128
        ("pit:1,2|1,4|1,8|2,16", 4, 32),
        ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,64", 7, 448),
    ],
)
def test_growth_steps_are_the_smallest_that_keep_the_rules(text: str, multiple: int, step: int) -> None:
    assert width_step(parse_topology(text), RULES, multiple=multiple) == step


def test_a_space_of_others_without_widths_cannot_have_rules() -> None:
    with pytest.raises(ValueError, match="need topologies with `layer_widths` and `head_widths`"):
        RULES.problem(Plain())
