"""Comparisons of recipes with equal work in benchmarks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._arms import (
    Arm,
    Result,
    Results,
    Setting,
    affordable_epochs,
    compare,
    planned_macs,
    refine_schedule,
    rows_of,
)
from benchmarks.methods import ELSEWHERE, KINDS
from tests.unit.training import CPU, DIGITS, TOPOLOGY, Recorder, configuration, digits, run

CONTROL = Arm("none")
PRUNED = Arm("pruned", {"curriculum": {"name": "pruning", "difficulty_epochs": 1, "difficulty_runs": 1}})
SETTING = Setting(
    data=DIGITS, topology=TOPOLOGY, recipe={"batch_size": 32}, epochs=3, rates=(1e-3, 4e-3), seeds=2, tuning_seeds=1
)


@pytest.mark.parametrize(
    "curriculum", ["none", "paced", "difficulty-weights", "progressive-tokenization", {"name": "pruning", "keep": 0.4}]
)
def test_planned_work_is_that_of_the_training(curriculum: Any, tmp_path: Path) -> None:
    arm = Arm("arm", {"curriculum": curriculum})
    recorder = Recorder()
    run(configuration(epochs=2, recipe={"batch_size": 32, "curriculum": curriculum}), tmp_path, recorder)
    done = sum(report.training_macs for report in recorder.reports)
    assert planned_macs(arm, SETTING, 2, digits()) == pytest.approx(done, rel=1e-9)


def test_an_arm_gets_the_epochs_that_the_work_of_the_control_allows() -> None:
    budget = planned_macs(CONTROL, SETTING, 10, digits())
    assert affordable_epochs(CONTROL, SETTING, digits(), budget=budget) == 10
    # A measurement takes 3 + 1 forward passes of each image, an epoch 3.
    assert affordable_epochs(PRUNED, SETTING, digits(), budget=budget) == 8
    free = replace(PRUNED, counts_measurement=False)
    assert affordable_epochs(free, SETTING, digits(), budget=budget) == 10
    with pytest.raises(ValueError, match="pruned cannot be compared"):
        affordable_epochs(PRUNED, SETTING, digits(), budget=budget // 10)


def test_arms_are_compared_once_and_go_on_from_a_file(tmp_path: Path) -> None:
    file, saved = tmp_path / "results.json", []

    def compared() -> dict[str, Result]:
        results = Results(file, {})

        def save(name: str, result: Result) -> None:
            saved.append(name)
            results.keep("digits", {"none": CONTROL, "pruned": PRUNED}[name], result)

        arms = (CONTROL, PRUNED)
        return compare(arms, SETTING, CPU, known=results.known("digits", SETTING, arms), save=save)

    first = compared()
    content = json.loads(file.read_text())
    del content["groups"]["digits"]["arms"]["pruned"]
    file.write_text(json.dumps(content))
    assert compared() == first
    assert saved == ["none", "pruned", "pruned"]
    assert first["none"]["macs"] == first["none"]["budget"]
    assert first["pruned"]["epochs"] == 1
    assert [len(first[name][part]) for name in first for part in ("validation", "test")] == [2] * 4
    assert set(first["none"]["tried"]) == {"0.001", "0.004"}
    rows = rows_of(first, "none")
    assert rows[0]["difference, points [95 %]"] == ""
    assert "[" in rows[1]["difference, points [95 %]"]


def test_an_arm_must_try_as_many_rates_as_the_others() -> None:
    with pytest.raises(ValueError, match="each arm must try 2 learning rates, but fast has 1"):
        compare((Arm("fast", rates=(1e-3,)),), SETTING, CPU, known={}, save=lambda *_: None)


@pytest.mark.parametrize(
    "arm", [arm for arms in (*KINDS.values(), *ELSEWHERE.values()) for arm in arms], ids=lambda arm: arm.name
)
def test_the_arms_of_the_benchmark_are_recipes(arm: Arm) -> None:
    SETTING.configuration(arm, epochs=1, rate=1e-3, seed=0)


def test_an_arm_with_a_teacher_counts_its_forward_passes_and_refuses_to_go_without_one() -> None:
    taught = Arm("taught", {"loss": "soft-distillation"}, is_taught=True)
    with pytest.raises(ValueError, match="must name the topology of a teacher"):
        compare((CONTROL, taught), SETTING, CPU, known={"none": {}}, save=lambda *_: None)
    found = compare((CONTROL, taught), replace(SETTING, teacher=TOPOLOGY), CPU, known={}, save=lambda *_: None)
    # An epoch takes 3 forward passes of each image and 1 of the teacher, which is as large.
    assert found["taught"]["epochs"] == 2
    assert found["taught"]["diverged"] == 0


def test_a_refined_schedule_is_learned_from_a_first_training_that_counts_unless_it_is_free() -> None:
    arm = Arm("refined", {"schedule": "linear"}, is_refined=True)
    refined = refine_schedule(arm, SETTING, digits(), CPU, epochs=3)
    choice = SETTING.configuration(refined, epochs=3, rate=1e-3, seed=0).recipe.schedule
    assert choice.name == "refined-linear"
    assert len(str(choice.settings["norms"]).split(",")) == 3
    free = replace(arm, name="refined *", counts_measurement=False)
    setting = replace(SETTING, epochs=4)
    found = compare((CONTROL, arm, free), setting, CPU, known={}, save=lambda *_: None)
    assert [found[one]["epochs"] for one in ("none", "refined", "refined *")] == [4, 2, 4]
    assert found["refined"]["macs"] == found["refined *"]["macs"] == found["none"]["macs"]
