"""AutoFormer's search space: text form, points, conditions, growth, costs."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.suggester import OptunaSuggester
from plugins.registry import available, create
from search_spaces.autoformer import SIZES, AutoFormerSpace, AutoFormerTopology
from search_spaces.base import ImageTask
from search_spaces.dimensions import AtLeast, is_active
from search_spaces.recipes import PluginChoice
from tests.fakes import make_trial
from trainers.models.autoformer import build_autoformer

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)


@st.composite
def topologies(draw: st.DrawFn, max_depth: int = 3, max_width: int = 4) -> AutoFormerTopology:
    depth = draw(st.integers(1, max_depth))
    heads = tuple(draw(st.integers(1, 4)) for _ in range(depth))
    return AutoFormerTopology(
        hidden_dim=12 * draw(st.integers(1, max_width)),
        depth=depth,
        num_heads=heads,
        mlp_ratio=tuple(draw(st.integers(1, 100_000)) / 10_000 + 0.5 for _ in range(depth)),
        patch_size=draw(st.sampled_from([8, 16])),
        head_width=draw(st.sampled_from([None, 3, 8])),
    )


@settings(max_examples=25, deadline=None)
@given(topology=topologies(), size=st.sampled_from([32, 64]), channels=st.sampled_from([1, 3]))
def test_closed_form_costs_are_those_of_the_built_model(topology: AutoFormerTopology, size: int, channels: int) -> None:
    task = ImageTask(image_size=size, in_channels=channels, num_classes=7)
    costs = AutoFormerSpace.costs(topology, task)
    model = build_autoformer(topology, task).eval()
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, channels, size, size))
    assert costs.macs == counter.get_total_flops() / 2


@given(topology=topologies(max_depth=20, max_width=80))
def test_reading_the_text_form_gives_the_same_topology(topology: AutoFormerTopology) -> None:
    assert AutoFormerSpace.parse(topology.text) == topology


def test_what_the_text_leaves_out_is_a_patch_size_of_16_and_shared_heads() -> None:
    topology = AutoFormerSpace.parse("3,3.5|4,4|192")
    assert topology.text == "3,3.5|4,4|192,16"
    assert (topology.num_heads, topology.mlp_ratio) == ((3, 4), (3.5, 4.0))
    assert topology.head_widths == (64, 48)
    assert AutoFormerSpace.parse("3,3.5|4,4|192,8,64").head_widths == (64, 64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192,16", "must have a part heads,ratio for each block .*but got one part"),
        ("3|192", "at character 1 of .*block 1 must be written heads,ratio, but got '3'"),
        ("3,4|x,4|192", "at character 5 of .*heads of block 2 must be a whole number of up to 4 digits, but got 'x'"),
        ("3,4|0,4|192", "at character 5 of .*heads of block 2 must be at least 1, but got 0"),
        ("3,4.12345|192", "at character 3 of .*ratio of block 1 must be a number .*4 decimals, but got '4.12345'"),
        ("3,0|192", "at character 3 of .*ratio of block 1 must be above 0, but got 0"),
        ("3,4|192,16,64,1", r"the last part must be written hidden_dim\[,patch_size\]\[,head_width\]"),
        ("3,4|4,4|200", "character 9 of .*hidden_dim of the last part must be a multiple of 12.*200. Use 192 or 204"),
        ("3,4|" + "9" * 5000, "up to 4 digits"),
    ],
)
def test_a_wrong_text_is_answered_with_position_rule_and_finding(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        AutoFormerSpace.parse(text)
    assert len(str(caught.value)) < 500


def test_blocks_that_are_not_described_cannot_be_constructed() -> None:
    with pytest.raises(ValidationError, match="num_heads must have one value for each of the 3 blocks, but got 2"):
        AutoFormerTopology(hidden_dim=12, depth=3, num_heads=(2, 2), mlp_ratio=(1, 1, 1))


def test_later_blocks_are_dimensions_only_while_the_depth_reaches_them() -> None:
    by_name = {dimension.name: dimension for dimension in AutoFormerSpace().dimensions()}
    assert len(by_name) == 2 + 2 * 14
    assert by_name["topology.block12.heads"].when is None
    assert by_name["topology.block13.mlp_ratio"].when == AtLeast(name="topology.depth", least=13)
    assert is_active(by_name["topology.block13.heads"], {"topology.depth": 14})
    assert not is_active(by_name["topology.block13.heads"], {"topology.depth": 12})
    assert not is_active(by_name["topology.block13.heads"], {})


def test_equal_topologies_have_one_point() -> None:
    space = AutoFormerSpace()
    point = space.encode(space.parse("|".join(["3,4"] * 12) + "|192"))
    other = {"topology.block13.heads": 4, "topology.block14.mlp_ratio": 3.5}
    assert space.decode({**point, **other}) == space.decode(point)
    assert space.encode(space.decode({**point, **other})) == point


@pytest.mark.parametrize("sampler", sorted(available("samplers")))
def test_samplers_suggest_different_topologies_or_say_why_not(sampler: str) -> None:
    space, objectives = AutoFormerSpace(size="small"), (Objective("score", "maximize"),)
    refused = create("samplers", sampler).problem(space.dimensions())
    if refused is not None:
        assert "topology.block13.heads exists only if topology.depth is 13 or more" in refused
        return
    suggester = OptunaSuggester(space.dimensions(), objectives=objectives, sampler=PluginChoice(name=sampler), seed=1)
    found = set()
    for number in range(25):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        topology = space.decode(suggestion.point)
        assert space.encode(topology) == suggestion.point
        found.add(topology.id)
        suggester.tell(make_trial(number, point=suggestion.point, metrics={"score": float(topology.depth)}))
    assert len(found) == 25


@pytest.mark.parametrize(("size", "head_width"), [("tiny", None), ("small", 64), ("base", 64)])
def test_each_size_has_its_ranges_and_its_usual_heads(size: str, head_width: int | None) -> None:
    space, rng = AutoFormerSpace.model_validate({"size": size, "patch_size": 8}), random.Random(0)
    drawn = [space.sample(rng) for _ in range(300)]
    assert {topology.hidden_dim for topology in drawn} == set(SIZES[size].hidden_dim)
    assert {topology.depth for topology in drawn} == set(SIZES[size].depth)
    assert {heads for topology in drawn for heads in topology.num_heads} == set(SIZES[size].heads)
    assert {ratio for topology in drawn for ratio in topology.mlp_ratio} == set(SIZES[size].mlp_ratio)
    assert {(topology.head_width, topology.patch_size) for topology in drawn} == {(head_width, 8)}
    assert all(space.problem(topology, TASK) is None for topology in drawn)


def test_the_width_of_heads_can_be_chosen_where_they_can_have_it() -> None:
    assert AutoFormerSpace(head_width=64).sample(random.Random(0)).head_width == 64
    with pytest.raises(ValidationError, match="must be a number for the size base, since a hidden_dim of 528 cannot"):
        AutoFormerSpace(size="base", head_width="shared")


def test_the_authors_tiny_space_has_between_4_and_9_million_parameters() -> None:
    """The AutoFormer paper's range for its tiny space, 4 to 9 M, up to its relative position."""
    task = ImageTask(image_size=224, in_channels=3, num_classes=1000)
    space, rng = AutoFormerSpace(head_width=64), random.Random(0)
    parameters = [space.costs(space.sample(rng), task).parameters for _ in range(200)]
    assert 4e6 < min(parameters) < max(parameters) < 11e6


def test_growing_repeats_the_last_block_and_keeps_the_heads_even() -> None:
    seed = AutoFormerSpace.parse("2,1.5|3,4|12,8")
    assert seed.width_unit == 6
    assert seed.with_size(depths=(4,), width=18).text == "2,1.5|3,4|3,4|3,4|18,8"
    assert seed.with_size(depths=(1,)).text == "2,1.5|12,8"
    with pytest.raises(ValueError, match=r"`width` must be a multiple of 6.*but got 14\. Use 12 or 18"):
        seed.with_size(width=14)
    free = AutoFormerSpace.parse("2,1.5|3,4|12,8,5")
    assert free.width_unit == 1
    assert free.with_size(width=14).hidden_dim == 14


def test_a_deeper_neighbour_repeats_the_last_block() -> None:
    space = AutoFormerSpace()
    topology = space.parse("|".join(["3,4"] * 11 + ["4,3.5"]) + "|192")
    deeper = [other for other in space.neighbours(topology) if other.depth == 14]
    assert [other.text for other in deeper] == ["|".join(["3,4"] * 11 + ["4,3.5"] * 3) + "|192,16"]


def test_a_child_of_parents_of_different_depths_has_the_blocks_of_its_own_depth() -> None:
    space, rng = AutoFormerSpace(), random.Random(0)
    short, long = (space.parse("|".join(["3,4"] * depth) + "|192") for depth in (12, 14))
    children = [space.crossover(short, long, rng) for _ in range(20)]
    assert {child.depth for child in children} == {12, 14}
    assert all(len(child.num_heads) == child.depth for child in children)


def test_heads_that_cannot_share_the_width_are_refused() -> None:
    topology = AutoFormerTopology(hidden_dim=32, depth=1, num_heads=(3,), mlp_ratio=(2.0,))
    assert AutoFormerSpace.problem(topology, TASK) == (
        "hidden_dim must be a multiple of 3, so that 3 heads can share it, but got 32. Use 30 or 33."
    )
    thin = AutoFormerTopology(hidden_dim=3, depth=1, num_heads=(3,), mlp_ratio=(0.2,))
    assert "each MLP needs a hidden channel, but block 1" in str(AutoFormerSpace.problem(thin, TASK))


def test_a_topology_of_another_space_is_refused() -> None:
    from search_spaces.pit import PitSpace

    with pytest.raises(TypeError, match="the space autoformer works on AutoFormerTopology, but got PitTopology"):
        AutoFormerSpace().encode(PitSpace().sample(random.Random(0)))
    with pytest.raises(TypeError, match="the space pit works on PitTopology, but got AutoFormerTopology"):
        PitSpace().encode(AutoFormerSpace().sample(random.Random(0)))
