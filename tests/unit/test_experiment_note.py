"""The text above a study's runs in MLflow."""

from typing import Any

from orchestrator.reports.experiment_note import experiment_note
from orchestrator.store.records import StageRecord, StudyRecord
from plugins.metrics.deciding import DecidingMetric
from search_spaces.recipes import PluginChoice
from tests.fakes import make_stage
from tests.unit.test_model_report import report

SPEC: dict[str, Any] = {
    "stages": [
        {"stage": "screen", "num_trials": 64, "space": {"name": "as-vit", "settings": {}}},
        {
            "stage": "train",
            "num_trials": 10,
            "epochs": 36,
            "recipe": {"learning_rate": {"low": 1}, "schedule": "cosine"},
        },
        {"stage": "promote"},
    ]
}
BEST = {"trial": 5, "val_accuracy": 0.99166, "val_loss": 0.05, "topology": "as-vit:8", "parameters": 331882.0}
NEXT = {"trial": 9, "val_accuracy": 0.98333, "val_loss": 0.06, "topology": "as-vit:9"}


def study(state: str = "complete") -> StudyRecord:
    return StudyRecord.model_validate(
        {
            "id": 1,
            "uid": "abc",
            "name": "digits",
            "spec": SPEC,
            "spec_digest": "d",
            "data_digest": "d",
            "state": state,
            "reason": None,
            "owner": "me",
            "created_at": 0.0,
            "updated_at": 0.0,
        }
    )


def stages(*, rows: list[dict[str, Any]], is_promoted: bool = True) -> list[StageRecord]:
    trained = {"best": rows[0], "leaderboard": rows} if rows else {}
    return [
        make_stage("screen", state="complete"),
        make_stage("train", state="complete" if rows else "running", result=trained),
        make_stage(
            "promote",
            state="complete" if is_promoted else "waiting",
            result={"trial": 5, "test_accuracy": 0.98888} if is_promoted else {},
        ),
    ]


def note(found: list[StageRecord], state: str = "complete") -> str:
    return experiment_note(
        study(state),
        found,
        stage_key=lambda stage: f"s/{stage.name}",
        trial_key=lambda stage, number: f"s/{stage.name}/{number}",
        num_validation=360,
        report_key="s/execution/0" if state == "complete" else None,
    )


def test_it_says_what_won_by_how_much_and_what_was_searched() -> None:
    text = note(stages(rows=[{**BEST, "recipe.learning_rate": 0.00258935}, NEXT]))
    won, recipe, margin, searched, links = text.split("\n\n")
    assert won == (
        "98.9 % on the test part, 99.2 % validation accuracy: [trial 05](run:s/train/5), 332k parameters, is the "
        "champion, [digits](model:digits)."
    )
    assert recipe == "**Its recipe:** `as-vit:8`; learning rate 0.002589."
    assert margin.startswith("**Margin:** +0.83 points over the next best, trial 09 with 98.3 %")
    assert "one validation image is 0.28 points" in margin
    assert searched == (
        "**Searched:** 64 topologies of `as-vit` scored without training; 10 trainings of 36 epochs over learning rate."
    )
    assert "[stage train](run:s/train)" in links
    assert "[plots of train](plots:s/train)" in links
    assert "[the report](report:s/execution/0)" in links
    assert "[trials, best first](view:trials)" in links


def test_equal_accuracies_are_no_margin() -> None:
    text = note(stages(rows=[BEST, {**NEXT, "val_accuracy": BEST["val_accuracy"]}]))
    assert "**Margin:** none over trial 09" in text
    assert "its loss is lower by 0.01" in text


def test_a_study_without_a_champion_shows_the_best_so_far() -> None:
    text = note(stages(rows=[BEST], is_promoted=False), state="interrupted")
    assert text.startswith("99.2 % validation accuracy so far: [trial 05](run:s/train/5), 332k parameters.")
    assert "The study is interrupted." in text
    assert "**Margin:**" not in text


def test_a_study_without_trainings_says_its_state() -> None:
    text = note(stages(rows=[], is_promoted=False), state="failed")
    assert text.startswith("**digits** is failed.")
    assert "view:trials" not in text


def test_the_tested_figure_is_named_if_another_metric_than_accuracy_decides() -> None:
    tested = report(50).model_copy(update={"metric": DecidingMetric.of(PluginChoice(name="loss"))})
    found = stages(rows=[BEST, NEXT])
    promote = found[-1]
    with_test = {**promote.result, "test": tested.model_dump(mode="json")}
    text = note([*found[:-1], promote.model_copy(update={"result": with_test})])
    assert text.startswith(
        f"loss {tested.metrics['loss'].value:.4f}, accuracy {100 * tested.metrics['accuracy'].value:.1f} %"
    )
