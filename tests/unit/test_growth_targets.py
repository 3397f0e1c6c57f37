"""Where growth starts and stops."""

from pathlib import Path

import pytest

from orchestrator.spec import SpecError, load_spec
from orchestrator.stage_specs import GrowStage
from orchestrator.stages.grow import GrowthSuggester
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
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


def grow(**targets: int) -> dict[str, int]:
    """The end of a growth whose candidates all score the same."""
    spec = GrowStage.model_validate({"stage": "grow", "reduction": 1, "width_ratios": [0.1], **targets})
    suggester, number = GrowthSuggester(START, spec, TASK), 0
    while (suggestion := suggester.ask(number)) is not None:
        scores = {"ntk-condition": 1.0, "length-distortion": 1.0}
        suggester.tell(make_trial(number, point=suggestion.point, metrics=scores))
        number += 1
    assert suggester.has_arrived
    return suggester.family[-1]


def problem_of(tmp_path: Path, sampler: str, grow: str) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY % (sampler, grow), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    return str(caught.value)


def test_growth_stops_at_the_first_topology_with_so_many_macs() -> None:
    start = AsViTSpace.costs(START, TASK).macs
    end = grow(target_macs=3 * start)
    assert 3 * start <= end["macs"] <= 1.375 * 3 * start


def test_of_two_targets_the_one_that_is_reached_first_counts() -> None:
    by_parameters, by_macs = grow(target_params=400_000), grow(target_macs=1_000_000)
    assert by_parameters["step"] != by_macs["step"]
    earlier = min(by_parameters, by_macs, key=lambda end: end["step"])
    assert grow(target_params=400_000, target_macs=1_000_000) == earlier


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
            "only while recipe.curriculum is 'paced'",
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
