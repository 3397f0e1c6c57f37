"""Where growth starts and stops."""

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.study_file import SpecError, load_spec
from orchestrator.stages.grow import GrowStage, GrowthStep, GrowthSuggester, growth_candidates
from plugins.registry import load, parse_topology
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import Growable, ImageTask, Topology
from tests.fakes import make_trial

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
START = AsViTSpace.parse("6,4,2,1|4,2,6,1|4,1,3,1|2,1,6,1|16,8")
STUDY = """\
study: growth
data: {source: digits}
stages:
  - {stage: screen, num_trials: 4, sampler: %s}
  - {stage: grow, %s}
"""


def grow(start: Topology = START, **settings: Any) -> GrowthStep:
    """The end of a growth whose candidates all score the same."""
    return grown_family(start, **settings)[-1]


def grown_family(start: Topology, **settings: Any) -> list[GrowthStep]:
    """The steps of a growth whose candidates all score the same."""
    spec = GrowStage.model_validate({"stage": "grow", "reduction": 1, "width_ratios": [0.1], **settings})
    suggester, number = GrowthSuggester(start, spec, TASK), 0
    while (suggestion := suggester.ask(number)) is not None:
        scores = {"ntk-condition": 1.0, "length-distortion": 1.0}
        suggester.tell(make_trial(number, point=suggestion.point, metrics=scores))
        number += 1
    assert suggester.has_arrived
    return suggester.family


def problem_of(tmp_path: Path, sampler: str, grow: str) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY % (sampler, grow), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    return str(caught.value)


def test_growth_stops_at_the_first_topology_with_so_many_macs() -> None:
    start = AsViTSpace.costs(START, TASK).macs
    end = grow(target_macs=3 * start)
    assert 3 * start <= end.macs <= 1.375 * 3 * start


def test_of_two_targets_the_one_that_is_reached_first_counts() -> None:
    by_parameters, by_macs = grow(target_params=400_000), grow(target_macs=1_000_000)
    assert by_parameters.step != by_macs.step
    earlier = min(by_parameters, by_macs, key=lambda end: end.step)
    assert grow(target_params=400_000, target_macs=1_000_000) == earlier


OTHERS = ("autoformer:3,3.5|4,4|96,8", "autoformer:2,2|2,2|4,2|24,8,16", "pit:1,2|1,4|1,4|2,8,8")
"""Starts of other spaces."""


@pytest.mark.parametrize("text", OTHERS)
def test_topologies_of_other_spaces_grow_too(text: str) -> None:
    start = parse_topology(text)
    assert isinstance(start, Growable)
    target = 3 * parameters_of(start)
    family = grown_family(start, target_params=target, reduction=2, width_ratios=[0.1, 0.25], max_steps=40)
    assert target <= family[-1].parameters <= 1.375 * target
    last = start
    for row in family:
        topology = parse_topology(row.topology)
        assert isinstance(topology, Growable)
        assert sum(row.depths) == sum(topology.depths) == sum(last.depths) + 1
        assert row.width == topology.width
        assert topology.width % (2 * topology.width_unit) == 0
        last = topology


def parameters_of(topology: Topology) -> int:
    parameters: int = load("spaces", topology.id.partition(":")[0]).costs(topology, TASK).parameters
    return parameters


def test_widths_are_multiples_that_the_reduced_heads_can_share() -> None:
    start = parse_topology("autoformer:3,4|4,4|192,8")
    spec = GrowStage.model_validate({"stage": "grow", "reduction": 4, "target_params": 10**7})
    widths = {topology.width for topology in growth_candidates(start, spec) if isinstance(topology, Growable)}
    assert widths == {4 * 12 * units for units in (4, 5)}


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("autoformer:3,4|4,4|192,8", r"at 1/32 of its width.*its width of 192 must be at least 32 x 12"),
        ("as-vit:6,4,2,1|4,2,6,1|4,1,3,1|2,1,6,1|16,33", "each head needs a channel"),
    ],
)
def test_a_start_that_is_too_narrow_for_the_reduction_is_refused(tmp_path: Path, topology: str, expected: str) -> None:
    found = problem_of(tmp_path, "random", f"target_params: 90_000_000, reduction: 32, topology: '{topology}'")
    assert re.search(rf"stages\[1\]\.reduction: must allow scoring every start.*{expected}", found)


def test_growth_without_a_target_is_refused(tmp_path: Path) -> None:
    assert "growth needs `target_params` or `target_macs`" in problem_of(tmp_path, "random", "max_steps: 3")


def test_a_start_above_the_target_macs_is_refused(tmp_path: Path) -> None:
    found = problem_of(tmp_path, "random", f"target_macs: 1000, reduction: 1, topology: 'as-vit:{START.text}'")
    assert f"must be above {AsViTSpace.costs(START, TASK).macs:,}, the macs of `topology`, but got 1,000" in found


def test_a_final_choice_needs_a_sampler_that_has_one(tmp_path: Path) -> None:
    grow = "start: final-choice, target_params: 5_000_000"
    assert "such as reinforce, but stage 'screen' has 'tpe'" in problem_of(tmp_path, "tpe", grow)
    file = tmp_path / "good.yaml"
    file.write_text(STUDY % ("reinforce", grow), encoding="utf-8")
    assert load_spec(file).stages[1].start == "final-choice"


def test_a_start_is_named_in_one_way(tmp_path: Path) -> None:
    found = problem_of(
        tmp_path, "reinforce", f"start: final-choice, target_params: 900_000, topology: 'as-vit:{START.text}'"
    )
    assert "give `topology` or `start`, but got both" in found


@pytest.mark.parametrize(
    ("sampler", "recipe", "expected"),
    [
        ("grid", "learning_rate: {low: 0.001, high: 0.01}", "but recipe.learning_rate is a range of real numbers"),
        ("reinforce", "learning_rate: {low: 0.001, high: 0.01}", "but recipe.learning_rate is a range of real numbers"),
        (
            "reinforce",
            "curriculum: [none, {name: paced, start: [0.2, 0.4]}]",
            "only if recipe.curriculum is 'paced'",
        ),
    ],
)
def test_a_sampler_that_cannot_sample_the_recipe_is_refused(
    tmp_path: Path, sampler: str, recipe: str, expected: str
) -> None:
    file = tmp_path / "study.yaml"
    train = f"  - {{stage: train, num_trials: 4, epochs: 1, sampler: {sampler}, candidates: {{best: 1, spread: 0}}"
    file.write_text((STUDY % ("random", "target_params: 900_000")) + f"{train}, recipe: {{{recipe}}}}}\n", "utf-8")
    with pytest.raises(SpecError, match=r"stages\[2\]\.sampler") as caught:
        load_spec(file)
    assert expected in str(caught.value)
