"""The events of a study make one tree of MLflow runs, even after interruptions."""

import json
from pathlib import Path

import pytest

from orchestrator.store.past_growths import Growths, PastGrowth
from orchestrator.store.records import ExecutionRecord, StudyRecord
from orchestrator.tracking.events import (
    DescribeExperiment,
    EndRun,
    LogMetrics,
    LogText,
    MoveRun,
    ResumeRun,
    SetTags,
    ShareView,
    StartRun,
    event_from_json,
)
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


def test_a_resumed_execution_takes_over_the_stages() -> None:
    stage = make_stage("train", started_at=5.0)
    (moved,) = events(TREE.execution_began(EXECUTION, [], stages=[stage]), MoveRun)
    assert (moved.key, moved.parent_key) == (TREE.stage_key(stage), TREE.execution_key(0))


def test_what_goes_on_no_longer_has_the_reason_of_its_stop() -> None:
    stage, trial = make_stage("train", started_at=5.0), make_trial(3, state="running")
    for rows in (
        TREE.stage_began(stage, EXECUTION, {}, 9.0),
        TREE.trial_began(stage, trial, {}, {}, again=True),
    ):
        (tags,) = events(rows, SetTags)
        assert tags.tags["vitsearch.state"] == "running"
        assert tags.removed == ("vitsearch.reason",)


def test_an_interrupted_trial_does_not_stay_running() -> None:
    stage, trial = make_stage("train", started_at=5.0), make_trial(3, state="running")
    rows = TREE.trial_interrupted(stage, trial, at=9.0)
    (end,), (tags,) = events(rows, EndRun), events(rows, SetTags)
    assert (end.status, end.end_time_ms) == ("KILLED", 9000)
    assert tags.tags == {"vitsearch.state": "waiting"}
    (resumed,) = events(TREE.trial_began(stage, trial, {}, {}, again=True), ResumeRun)
    assert resumed.key == end.key


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


def test_metrics_are_short_and_the_point_of_a_trial_has_all_digits() -> None:
    rate = 0.0025893512345
    trial = make_trial(3, metrics={"wall_time_s": 10.14799, "parameters": 331882.0, "macs": 12345.678})
    trial = trial.model_copy(update={"point": {"recipe.learning_rate": rate}})
    rows = TREE.trial_ended(make_stage(), trial, extra={"proxy": 1 / 3}, configuration_yaml="", checkpoint=None)
    values = {point.name: point.value for event in events(rows, LogMetrics) for point in event.points}
    assert values == {"wall_time_s": 10.15, "parameters": 331882.0, "macs": 12346.0, "proxy": 0.3333}
    (began,) = events(TREE.trial_began(make_stage(), trial, {}, {}), StartRun)
    assert json.loads(began.tags["vitsearch.point"]) == {"recipe.learning_rate": rate}


def test_a_trial_is_named_after_its_result_and_its_size() -> None:
    trial = make_trial(5, metrics={"parameters": 331882.0})
    failed = make_trial(6, state="failed", metrics={})
    names = [
        tags.tags["mlflow.runName"]
        for one, result in ((trial, "99.2 %"), (failed, None))
        for tags in events(
            TREE.trial_ended(make_stage(), one, extra={}, configuration_yaml="", checkpoint=None, result=result),
            SetTags,
        )
    ]
    assert names == ["05 · 99.2 % · 332k", "06 · failed"]
    (began,) = events(TREE.trial_began(make_stage(), trial, {"topology.parameters": 3_499_000}, {}), StartRun)
    assert began.name == "05 · 3.5M"


def test_the_view_of_trials_has_the_searched_parameters_and_is_sorted_by_place() -> None:
    stage = make_stage("train")
    common = {"metrics": ["val_accuracy"], "descending": True, "params": ["recipe.learning_rate"], "at": 1.0}
    (before,) = events(TREE.trials_shown(stage, is_ranked=False, **common), ShareView)
    (after,) = events(TREE.trials_shown(stage, is_ranked=True, **common), ShareView)
    assert (before.order_by, before.descending) == ("metrics.val_accuracy", True)
    assert (after.order_by, after.descending) == ("metrics.rank", False)
    assert before.columns[0] == "metrics.val_accuracy"
    assert after.columns[:2] == ("metrics.rank", "metrics.val_accuracy")
    assert after.columns[-1] == "params.recipe.learning_rate"
    assert after.filter == "tags.`vitsearch.level` = 'trial' and tags.`vitsearch.stage` = 'train'"
    places = events(TREE.trials_ranked(stage, [make_trial(4), make_trial(2)], at=1.0), LogMetrics)
    assert [(one.key, one.points[0].value) for one in places] == [
        (TREE.trial_key(stage, 4), 1.0),
        (TREE.trial_key(stage, 2), 2.0),
    ]


def test_with_several_train_stages_the_view_shows_the_latest() -> None:
    spec = {"stages": [{"stage": "train"}, {"stage": "train", "name": "again"}]}
    tree, stage = RunTree(STUDY.model_copy(update={"spec": spec}), ""), make_stage("again", kind="train")
    (view,) = events(
        tree.trials_shown(stage, metrics=["x"], descending=True, params=[], is_ranked=False, at=1.0), ShareView
    )
    assert view.filter.endswith("tags.`vitsearch.stage_name` = 'again'")


def test_the_champion_has_a_star_and_a_former_champion_loses_it() -> None:
    stage, best, former = make_stage(), make_trial(5, metrics={"parameters": 1000.0}), make_trial(2, metrics={})
    lost, won = events(
        TREE.champion_marked(stage, best, result="99.2 %", text="wins", former=(former, "98.0 %")), SetTags
    )
    assert (lost.key, lost.tags["mlflow.runName"]) == (TREE.trial_key(stage, 2), "02 · 98.0 %")
    assert lost.removed == ("vitsearch.champion", "mlflow.note.content")
    assert won.tags == {
        "vitsearch.champion": "true",
        "mlflow.note.content": "wins",
        "mlflow.runName": "★ 05 · 99.2 % · 1k",
    }
    again = events(TREE.champion_marked(stage, best, result="99.2 %", text="wins", former=(best, "99.2 %")), SetTags)
    assert again == [won]


def test_the_summary_of_a_stage_describes_its_run() -> None:
    (tags,) = events(TREE.stage_ended(make_stage(), "complete", at=9.0, summary="3 trials"), SetTags)
    assert tags.tags["mlflow.note.content"] == "3 trials"
    ended = TREE.execution_ended(EXECUTION, "complete", ended_at=9.0, metrics={}, summary="won")
    assert events(ended, SetTags)[0].tags["mlflow.note.content"] == "won"
    (described,) = events(TREE.experiment_described("won"), DescribeExperiment)
    assert described.experiment == "digits"


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


def test_trials_that_run_again_replace_their_earlier_runs_and_the_others_move_to_the_new_stage() -> None:
    growths = Growths([PastGrowth(stages=("train",), rerun={"train": (2,)})])
    tree, stage = RunTree(STUDY, "study: digits\n", growths=growths), make_stage("train")
    again, kept = make_trial(2), make_trial(1)
    (hidden,) = events(tree.trial_began(stage, again, {}, {}), SetTags)
    assert (hidden.key, hidden.if_started) == (TREE.trial_key(stage, 2), True)
    assert hidden.tags["vitsearch.level"] != "trial"
    assert events(tree.trial_began(stage, kept, {}, {}), SetTags) == []
    (moved,) = events(tree.trials_taken_over(stage, [kept]), MoveRun)
    assert (moved.key, moved.parent_key) == (TREE.trial_key(stage, 1), tree.stage_key(stage))
    assert moved.parent_key != TREE.stage_key(stage)
    assert TREE.trials_taken_over(stage, [kept]) == []


def test_a_stage_links_to_where_it_started_from() -> None:
    (tags,) = events(TREE.stage_linked(make_stage("train"), {"warm_started_from": "study first"}), SetTags)
    assert tags.tags == {"vitsearch.warm_started_from": "study first"}
    assert TREE.stage_linked(make_stage("train"), {}) == []
