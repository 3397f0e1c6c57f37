"""PiT's search space: text form, points, growth, costs."""

import itertools
import random
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.spec.topology_checks import extreme_cost
from search_spaces.base import ImageTask
from search_spaces.dimensions import count_points
from search_spaces.pit import DEPTHS, HEADS, PitSpace, PitTopology
from trainers.models.pit import build_pit

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)
PAPER = "2,2|8,4|4,4|6,16"


@st.composite
def topologies(draw: st.DrawFn, max_depth: int = 2, max_width: int = 6) -> PitTopology:
    heads = [draw(st.integers(1, 2))]
    for _ in range(2):
        heads.append(heads[-1] * draw(st.integers(1, 2)))
    return PitTopology.model_validate(
        {
            "base_dim": draw(st.integers(1, max_width)),
            "mlp_ratio": draw(st.integers(1, 4)),
            "depth": [draw(st.integers(1, max_depth)) for _ in range(3)],
            "num_heads": heads,
            "patch_size": draw(st.sampled_from([4, 8, 16])),
        }
    )


@settings(max_examples=25, deadline=None)
@given(topology=topologies(), size=st.sampled_from([32, 48, 64]), channels=st.sampled_from([1, 3]))
def test_closed_form_costs_are_those_of_the_built_model(topology: PitTopology, size: int, channels: int) -> None:
    task = ImageTask(image_size=size, in_channels=channels, num_classes=7)
    costs = PitSpace.costs(topology, task)
    model = build_pit(topology, task).eval()
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, channels, size, size))
    assert costs.macs == counter.get_total_flops() / 2


@given(topology=topologies(max_depth=30, max_width=500))
def test_reading_the_text_form_gives_the_same_topology(topology: PitTopology) -> None:
    assert PitSpace.parse(topology.text) == topology


def test_a_text_without_a_patch_size_means_16() -> None:
    topology = PitSpace.parse(PAPER)
    assert topology.text == f"{PAPER},16"
    assert topology == PitTopology(base_dim=16, mlp_ratio=6, depth=(2, 8, 4), num_heads=(2, 4, 4))
    assert (topology.widths, topology.stride) == ((32, 64, 64), 8)


def test_the_space_has_its_points() -> None:
    assert count_points(PitSpace().dimensions()) == 1600
    assert len(set(DEPTHS)) == len(set(HEADS)) == 10
    assert all(sum(depths) <= 16 for depths in DEPTHS)


@pytest.mark.parametrize("cost", ["parameters", "macs"])
def test_coordinate_descent_finds_the_smallest_and_the_largest(cost: Literal["parameters", "macs"]) -> None:
    space = PitSpace(patch_size=8)
    options = [getattr(one, "options", None) or range(one.low, one.high + 1, one.step) for one in space.dimensions()]
    names = [dimension.name for dimension in space.dimensions()]
    points = (dict(zip(names, values, strict=True)) for values in itertools.product(*options))
    values = [getattr(space.costs(space.decode(point), TASK), cost) for point in points]
    assert extreme_cost(space, cost, TASK, sign=1, enough=0)[0] == min(values)
    assert extreme_cost(space, cost, TASK, sign=-1, enough=10**15)[0] == max(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "four parts separated by '.'.*but got 1"),
        ("2,2|8,4|4,4", "must have four parts .*but got 3"),
        ("2,2|8|4,4|6,16", "at character 5 of .*stage 2 must be written depth,heads, but got '8'"),
        (
            "2,2|8,3|4,4|6,16",
            "at character 7 of .*heads of stage 2 must be a multiple of the 2 .*previous stage, but got 3",
        ),
        ("2,4|8,4|4,2|6,16", "at character 11 of .*heads of stage 3 must be a multiple of the 4 .*but got 2"),
        ("0,2|8,4|4,4|6,16", "at character 1 of .*depth of stage 1 must be at least 1, but got 0"),
        ("2,2|8,4|4,4|6.5,16", "at character 13 of .*mlp_ratio of the last part must be a whole number"),
        ("2,2|8,4|4,4|6,16,7", "at character 18 of .*patch_size of the last part must be an even number.*but got 7"),
    ],
)
def test_a_wrong_text_is_answered_with_position_rule_and_finding(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        PitSpace.parse(text)


def test_a_patch_without_a_half_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be an even number, so that patches can overlap by half, but got 5"):
        PitSpace(patch_size=5)


@pytest.mark.parametrize(("size", "nearest"), [(224, None), (16, None), (8, "Use 16"), (30, "Use 24 or 32")])
def test_an_image_whose_border_no_patch_sees_is_refused_with_the_nearest_sizes(size: int, nearest: str | None) -> None:
    problem = PitSpace.problem(PitSpace.parse(PAPER), TASK.model_copy(update={"image_size": size}))
    assert (problem is None) == (nearest is None)
    assert nearest is None or nearest in str(problem)


def test_heads_that_pooling_cannot_make_are_refused() -> None:
    topology = PitTopology(base_dim=4, mlp_ratio=1, depth=(1, 1, 1), num_heads=(2, 2, 3))
    assert PitSpace.problem(topology, TASK) == (
        "the heads of stage 3 must be a multiple of the 2 of the previous stage, but got 3."
    )


def test_growing_keeps_everything_but_the_size() -> None:
    seed = PitSpace.parse(PAPER)
    assert seed.with_size(depths=(2, 9, 4), width=17).text == "2,2|9,4|4,4|6,17,16"
    with pytest.raises(ValueError, match=r"three stages, but got \[1, 2\]"):
        seed.with_size(depths=(1, 2))


def test_changing_a_grown_topology_keeps_what_is_not_changed() -> None:
    space, grown = PitSpace(), PitSpace.parse("2,2|9,4|4,4|6,17,8")
    changed = [*space.neighbours(grown), space.mutate(grown, random.Random(0))]
    fields = ("base_dim", "mlp_ratio", "depth", "num_heads", "patch_size")
    for one in changed:
        assert sum(getattr(one, field) != getattr(grown, field) for field in fields) == 1
        assert one.patch_size == 8
