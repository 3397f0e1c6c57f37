"""As-ViT's search space: text form, points, costs."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.as_vit import EXPANSIONS, HEADS, KERNELS, SPLITS, AsViTSpace, AsViTTopology, Stage
from search_spaces.base import ImageTask
from search_spaces.dimensions import count_points
from trainers.models.as_vit import build_as_vit

SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"


@st.composite
def topologies(draw: st.DrawFn, max_depth: int = 2, max_width: int = 24) -> AsViTTopology:
    stages = tuple(
        Stage(
            kernel=draw(st.sampled_from(KERNELS[index])),
            split=draw(st.sampled_from(SPLITS[index])),
            expansion=draw(st.sampled_from(EXPANSIONS[index])),
            depth=draw(st.integers(1, max_depth)),
        )
        for index in range(4)
    )
    width = draw(st.integers(8, max_width))
    return AsViTTopology.model_validate({"stages": stages, "heads": draw(st.sampled_from(HEADS)), "width": width})


@pytest.mark.parametrize(
    ("depths", "width", "parameters_m", "macs_g"),
    [((3, 1, 4, 2), 88, 28.78, 5.13), ((3, 1, 5, 2), 116, 52.26, 8.75), ((5, 2, 5, 2), 180, 87.58, 22.36)],
    ids=["S", "B", "L"],
)
def test_the_published_models_have_their_published_costs(
    depths: tuple[int, ...], width: int, parameters_m: float, macs_g: float
) -> None:
    topology = AsViTSpace.parse(SEED).with_size(depths=depths, width=width)
    costs = AsViTSpace.costs(topology, ImageTask(image_size=224, in_channels=3, num_classes=1000))
    assert round(costs.parameters / 1e6, 2) == parameters_m
    assert round(costs.macs / 1e9, 2) == macs_g


@settings(max_examples=25, deadline=None)
@given(topology=topologies(), image_size=st.sampled_from([32, 64]), channels=st.sampled_from([1, 3]))
def test_closed_form_costs_are_those_of_the_built_model(
    topology: AsViTTopology, image_size: int, channels: int
) -> None:
    task = ImageTask(image_size=image_size, in_channels=channels, num_classes=7)
    costs = AsViTSpace.costs(topology, task)
    model = build_as_vit(topology, task).eval()
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, channels, image_size, image_size))
    assert costs.macs == counter.get_total_flops() / 2


@given(topology=topologies(max_depth=9, max_width=1024))
def test_reading_the_text_form_gives_the_same_topology(topology: AsViTTopology) -> None:
    assert AsViTSpace.parse(topology.text) == topology


@given(topology=topologies())
def test_a_point_stands_for_its_topology(topology: AsViTTopology) -> None:
    space = AsViTSpace(width=topology.width, depths=topology.depths)
    point = space.encode(topology)
    assert list(point) == [dimension.name for dimension in space.dimensions()]
    assert space.decode({**point, "recipe.learning_rate": 0.1}) == topology


def test_a_text_without_depths_and_width_means_depth_1_and_width_32() -> None:
    assert AsViTSpace.parse(SEED).text == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"
    assert AsViTSpace.parse("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180").depths == (5, 2, 5, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "five parts"),
        ("8,2,3|4,1,2|4,1,4|4,1,6", "five parts separated by '.'"),
        ("8,2|4,1,2|4,1,4|4,1,6|32", "at character 1 of .*stage 1 must be written kernel,split,expansion.*got '8,2'"),
        ("8,2,3|4,1,9|4,1,4|4,1,6|32", "at character 11 of .*expansion of stage 2 must be one of 2, 3, 4, 5, 6.*got 9"),
        ("8,x,3|4,1,2|4,1,4|4,1,6|32", "at character 3 of .*split of stage 1 must be a whole number.*got 'x'"),
        ("8,2,3|4,1,2|4,1,4|4,2,6|32", "at character 21 of .*split of stage 4 must be 1, but got 2"),
        ("8,2,3,0|4,1,2|4,1,4|4,1,6|32", "at character 7 of .*depth of stage 1 must be at least 1, but got 0"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|48", "at character 25 of .*heads of the last part must be one of 16, 32, 64"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,0", "at character 28 of .*width of the last part must lie between 1 and 1024"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32," + "9" * 5000, "up to 4 digits"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|²", "must be a whole number"),
    ],
)
def test_a_wrong_text_is_answered_with_position_rule_and_finding(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        AsViTSpace.parse(text)


def test_a_wrong_text_of_any_length_gives_a_short_message() -> None:
    with pytest.raises(ValueError, match="five parts") as caught:
        AsViTSpace.parse("8" * 1_000_000)
    assert len(str(caught.value)) < 500


def test_values_outside_the_space_cannot_be_constructed() -> None:
    stages = AsViTSpace.parse(SEED).stages
    with pytest.raises(ValidationError, match=r"heads must be one of 16, 32, 64, but got 20"):
        AsViTTopology(stages=stages, heads=20)
    with pytest.raises(ValidationError, match=r"kernel of stage 1 must be one of 4, 5, 6, 7, 8, but got 9"):
        AsViTTopology(stages=(stages[0].model_copy(update={"kernel": 9}), *stages[1:]), heads=32)


def test_the_space_has_as_many_seed_topologies_as_the_paper_says() -> None:
    assert count_points(AsViTSpace().dimensions()) == 4_556_250


def test_growing_keeps_the_seed_topology() -> None:
    seed = AsViTSpace.parse(SEED)
    grown = seed.with_size(depths=(1, 2, 1, 1))
    assert grown.text == "8,2,3,1|4,1,2,2|4,1,4,1|4,1,6,1|32,32"
    assert grown.with_size(depths=(1, 1, 1, 1), width=40) == seed.with_size(width=40)
    with pytest.raises(ValueError, match=r"four stages, but got \[1, 2\]"):
        seed.with_size(depths=(1, 2))
    with pytest.raises(ValueError, match="depth of stage 3 must be at least 1"):
        seed.with_size(depths=(1, 1, 0, 1))


def test_width_stops_doubling_at_1024() -> None:
    assert AsViTSpace.parse(SEED).with_size(width=180).widths == (180, 360, 720, 1024)


@pytest.mark.parametrize(
    ("size", "nearest"), [(40, "Use 32 or 64"), (224, None), (8, "Use 32"), (250, "Use 224 or 256")]
)
def test_an_image_size_that_does_not_halve_is_refused_with_the_nearest_ones(size: int, nearest: str | None) -> None:
    task = ImageTask(image_size=size, in_channels=3, num_classes=10)
    problem = AsViTSpace.problem(AsViTSpace.parse(SEED), task)
    assert (problem is None) == (nearest is None)
    assert nearest is None or nearest in str(problem)


def test_more_heads_than_channels_are_refused() -> None:
    task = ImageTask(image_size=32, in_channels=3, num_classes=10)
    topology = AsViTSpace.parse("8,2,3|4,1,2|4,1,4|4,1,6|64,7")
    assert "stage 1 has 8 heads and 7 channels. Use a width of 8 or more" in str(AsViTSpace.problem(topology, task))
    assert AsViTSpace.problem(topology.with_size(width=8), task) is None


def test_encoding_a_topology_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="width 16"):
        AsViTSpace(width=16).encode(AsViTSpace.parse(SEED))


def test_changing_a_topology_keeps_its_size() -> None:
    space, grown = AsViTSpace(), AsViTSpace.parse("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180")
    changed = [*space.neighbours(grown), space.mutate(grown, random.Random(0))]
    assert {(one.width, one.depths) for one in changed} == {(180, (5, 2, 5, 2))}
