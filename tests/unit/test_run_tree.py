"""The events of a study make one tree of MLflow runs, even after interruptions."""

from pathlib import Path

import pytest

from orchestrator.store.records import ExecutionRecord, StudyRecord
from orchestrator.tracking.events import EndRun, LogMetrics, LogText, ResumeRun, SetTags, StartRun, event_from_json
from orchestrator.tracking.run_tree import RunTree
from tests.fakes import make_stage, make_trial
from trainers.config import EpochReport

STUDY = StudyRecord(
    id=1,
    uid="abc",
    name="digits",
    spec={"seed": 3, "engine": "optuna"},
    spec_digest="d" * 64,
    data_digest="d" * 64,
    state="running",
    reason=None,
    owner="me",
    created_at=0.0,
    updated_at=0.0,
)
EXECUTION = ExecutionRecord(
    id=1,
    study_id=1,
    number=0,
    state="running",
    reason=None,
    host="here",
    pid=1,
    code_version="0.1",
    started_at=5.0,
    ended_at=None,
)
TREE = RunTree(STUDY, "study: digits\n")


def events(rows: list[str], kind: type) -> list:
    return [event for event in map(event_from_json, rows) if isinstance(event, kind)]


def test_runs_hang_below_one_another() -> None:
    stage, trial = make_stage("train", started_at=None), make_trial(3, state="running")
    (execution,) = events(TREE.execution_began(EXECUTION, []), StartRun)
    (began,) = events(TREE.stage_began(stage, EXECUTION, {"epochs": 4}, 6.0), StartRun)
    (trained,) = events(TREE.trial_began(stage, trial, {"topology": "t"}, {"grown_from": "s"}), StartRun)
    assert execution.parent_key is None
    assert began.parent_key == execution.key
    assert trained.parent_key == began.key
    assert {run.experiment for run in (execution, began, trained)} == {"digits"}
    assert [run.tags["vitsearch.level"] for run in (execution, began, trained)] == ["execution", "stage", "trial"]
    assert trained.tags["vitsearch.grown_from"] == "s"
    assert len({execution.key, began.key, trained.key}) == 3


def test_a_stage_that_goes_on_keeps_its_run() -> None:
    rows = TREE.stage_began(make_stage("train", started_at=5.0), EXECUTION, {}, 9.0)
    assert events(rows, ResumeRun) != []
    (start,) = events(rows, StartRun)  # nothing new to MLflow, unless the stage began while tracking was off
    assert start.start_time_ms == 5000
    assert {event.key for event in map(event_from_json, rows)} == {TREE.stage_key(make_stage("train"))}


@pytest.mark.parametrize(
    ("state", "status"),
    [("complete", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED"), ("lost", "KILLED")],
)
def test_runs_end_with_the_state_of_what_they_stand_for(state: str, status: str) -> None:
    for rows in (
        TREE.execution_ended(EXECUTION, state, ended_at=9.0, metrics={}),
        TREE.stage_ended(make_stage(), state, at=9.0, reason="why"),
    ):
        (end,) = events(rows, EndRun)
        assert (end.status, end.end_time_ms) == (status, 9000)
        assert event_from_json(rows[-1]) == end
        assert any(event.tags["vitsearch.state"] == state for event in events(rows, SetTags))


def test_a_curve_has_the_same_few_metrics_in_each_epoch() -> None:
    report = EpochReport(
        epoch=2, train_loss=1.5, val_loss=1.25, val_accuracy=0.5, learning_rate=0.1, num_images=9, wall_time_s=1.0
    )
    (told,) = events(TREE.epoch(make_stage(), make_trial(3, state="running"), report, 7.0), LogMetrics)
    values = {point.name: point.value for point in told.points}
    assert values == {"train_loss": 1.5, "val_loss": 1.25, "val_accuracy": 0.5, "learning_rate": 0.1}
    assert {(point.step, point.time_ms) for point in told.points} == {(2, 7000)}


def test_signals_of_an_epoch_are_metrics_of_the_trial() -> None:
    report = EpochReport(
        epoch=2,
        train_loss=1.5,
        val_loss=1.25,
        val_accuracy=0.5,
        learning_rate=0.1,
        num_images=9,
        wall_time_s=1.0,
        signals={"gradient_norm": 0.75},
    )
    (logged,) = events(TREE.epoch(make_stage(), make_trial(3, state="running"), report, 7.0), LogMetrics)
    assert {point.name: point.value for point in logged.points}["gradient_norm"] == 0.75


def test_a_trial_without_a_configuration_has_no_file_of_it() -> None:
    rows = TREE.trial_ended(make_stage(), make_trial(3), extra={}, configuration_yaml="", checkpoint=None)
    assert events(rows, LogText) == []


@pytest.mark.parametrize("state", ["complete", "stopped", "failed"])
def test_a_trial_ends_with_its_reason_and_never_repeats_its_curve(state: str, tmp_path: Path) -> None:
    trial = make_trial(3, state=state, reason="because", metrics={"val_accuracy": 0.5, "val_accuracy_best": 0.6})
    rows = TREE.trial_ended(make_stage(), trial, extra={"x": 1.0}, configuration_yaml="a: 1", checkpoint=tmp_path)
    names = {point.name for event in events(rows, LogMetrics) for point in event.points}
    assert names == {"val_accuracy_best", "x"}
    (tags,) = events(rows, SetTags)
    assert tags.tags["vitsearch.reason"] == "because"
    (end,) = events(rows, EndRun)
    assert end.status == ("FAILED" if state == "failed" else "FINISHED")
