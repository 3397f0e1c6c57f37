"""A study whose second training follows the gradient norms of the first."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.spec.checks import configuration_problems
from orchestrator.spec.study_file import SpecError, load_spec
from orchestrator.stages.context import StageFailedError
from orchestrator.stages.learned_schedules import learn_schedules, with_learned_schedule
from plugins.registry import create
from search_spaces.recipes import Recipe
from tests.fakes import RecordingProgress
from tests.tiny import Rows, read_rows, run_here
from tests.unit.training import TOPOLOGY, configuration

STUDY = f"""\
study: refined
data: {{source: digits, max_images: 120, max_test_images: 60}}
stages:
  - stage: train
    name: pilot
    topologies: ["{TOPOLOGY}"]
    num_trials: 1
    epochs: 3
    recipe: {{batch_size: 32, schedule: constant}}
  - stage: train
    topologies: ["{TOPOLOGY}"]
    num_trials: 2
    epochs: 4
    recipe: {{batch_size: 32, warmup: 0, schedule: [{{name: refined-linear, stage: pilot}}, linear]}}
  - stage: promote
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refined")
    (folder / "study.yaml").write_text(STUDY)
    assert run_here(folder / "study.yaml", folder / "home", progress=RecordingProgress()).state == "complete"
    return folder


@pytest.fixture(scope="module")
def rows(home: Path) -> Rows:
    return read_rows(home / "home", "refined")


def norms_of(rows: Rows) -> list[float]:
    return [report.signals["gradient_norm"] for report in rows.curves["pilot"][0]]


def test_the_rates_follow_the_norms_that_the_first_stage_recorded(rows: Rows) -> None:
    norms = norms_of(rows)
    assert len(norms) == 3
    text = ", ".join(f"{norm:.6g}" for norm in norms)
    schedule = create("schedules", "refined-linear", {"norms": text})
    (refined,) = (
        curve
        for trial, curve in zip(rows.trials["train"], rows.curves["train"], strict=True)
        if trial.point["recipe.schedule"] == "refined-linear"
    )
    num_steps = 3  # per epoch; the report has the rate of the last one
    expected = [2e-3 * schedule.factor_after(epoch - 1 / num_steps, 4) for epoch in (1, 2, 3, 4)]
    assert [report.learning_rate for report in refined] == pytest.approx(expected)


def test_the_norms_are_kept_and_make_the_recipe_complete(home: Path, rows: Rows) -> None:
    (file,) = (home / "home").rglob("gradient-norms.json")
    assert json.loads(file.read_bytes()) == {"pilot": norms_of(rows)}
    recipe = Recipe.model_validate({"schedule": {"name": "refined-linear", "stage": "pilot"}})
    learned = with_learned_schedule(recipe, file.parent)
    assert learned.schedule.settings["norms"].count(",") == 2
    assert "stage" not in learned.schedule.settings
    assert with_learned_schedule(learned, home) == learned
    with pytest.raises(StageFailedError, match="must contain the gradient norms of stage 'pilot'"):
        with_learned_schedule(recipe, home)
    best = rows.stages["promote"].result["configuration"]["recipe"].get("schedule")
    assert best is None or "stage" not in str(best)


def test_norms_are_read_once(home: Path, rows: Rows, tmp_path: Path) -> None:
    (file,) = (home / "home").rglob("gradient-norms.json")
    shutil.copy(file, tmp_path)
    recipe = {"schedule": {"name": "refined-linear", "stage": "pilot"}}
    learn_schedules(tmp_path, recipe, lambda _: pytest.fail("they are known"))
    (tmp_path / file.name).unlink()
    with pytest.raises(StageFailedError, match="in 0 of 3"):
        learn_schedules(
            tmp_path, recipe, lambda _: [one.model_copy(update={"signals": {}}) for one in rows.curves["pilot"][0]]
        )


def test_a_configuration_contains_the_norms_themselves() -> None:
    recipe = {"schedule": {"name": "refined-linear", "stage": "pilot"}}
    (problem,) = configuration_problems(configuration(recipe=recipe))
    assert "Give its `norms` instead" in problem.message
    assert (
        list(configuration_problems(configuration(recipe={"schedule": {"name": "refined-linear", "norms": "2, 1"}})))
        == []
    )


@pytest.mark.parametrize("name", ["screen", "pilots", "train"])
def test_a_schedule_names_an_earlier_train_stage(tmp_path: Path, name: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("stage: pilot", f"stage: {name}"))
    with pytest.raises(SpecError, match=rf"must name an earlier train stage \(pilot\), but got '{name}'"):
        load_spec(file)
