"""Delivery to a real MLflow store on SQLite. A migrated database is created once and copied for each test."""

import math
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store.study_names import full_name
from orchestrator.tracking.events import (
    DeleteExperiment,
    DescribeExperiment,
    EndRun,
    EnsureExperiment,
    Event,
    LogArtifact,
    LogInputs,
    LogMetrics,
    LogText,
    MetricPoint,
    MoveRun,
    RegisterModel,
    ResumeRun,
    SetTags,
    ShareView,
    StartRun,
    event_from_json,
    event_to_json,
)
from orchestrator.tracking.mlflow_client import (
    ExperimentGone,
    MemoryRunIds,
    Tracker,
    TrackingRejected,
    TrackingUnavailable,
)
from orchestrator.tracking.pages import state_of_saved_view
from orchestrator.tracking.server import server_command
from tests.object_store import S3Server
from trainers.data.cache_settings import CACHE_VARIABLE, use_cache
from trainers.storage.addresses import local_place
from trainers.storage.artifacts import published

STUDY = "study/7"
EXECUTION, STAGE, TRIAL = f"{STUDY}/execution/1", f"{STUDY}/stage/train", f"{STUDY}/trial/3"
NOW = 1_760_000_000_000


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mlflow")
    url = Tracker(f"sqlite:///{home}/mlflow.db", home / "artifacts").experiment_url("none", server_url="http://here")
    assert url is None  # the question has made the tables
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, migrated: Path) -> Path:
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy:
        source.backup(copy)  # a plain copy of the file would leave out what is still in its write-ahead log
    return tmp_path


@pytest.fixture
def tracker(home: Path) -> Tracker:
    return make_tracker(home)


def make_tracker(home: Path, run_ids: MemoryRunIds | None = None) -> Tracker:
    return Tracker(f"sqlite:///{home}/mlflow.db", home / "artifacts", run_ids)


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{home}/mlflow.db")


def runs(home: Path, experiment: str = "digits") -> dict[str, Any]:
    found = client(home).get_experiment_by_name(experiment)
    return {run.data.tags["vitsearch.key"]: run for run in client(home).search_runs([found.experiment_id])}


def start(key: str, parent: str | None = None, **params: str | int | float | bool | None) -> StartRun:
    name = key.rsplit("/", 1)[-1]
    return StartRun(key=key, parent_key=parent, name=name, experiment="digits", params=params, start_time_ms=NOW)


def metrics(key: str, *values: float, name: str = "val_accuracy") -> LogMetrics:
    points = tuple(MetricPoint(name, value, step, NOW + step) for step, value in enumerate(values, 1))
    return LogMetrics(key=key, points=points)


def whole_study(home: Path) -> list[Event]:
    folder = home / "champion"
    folder.mkdir(exist_ok=True)
    (folder / "best.yaml").write_text("epochs: 20\n")
    return [
        EnsureExperiment(name="digits", description="a study", tags={"vitsearch.study": "7"}),
        ShareView(
            experiment="digits", name="trials", columns=("metrics.val_accuracy",), order_by="metrics.val_accuracy"
        ),
        start(EXECUTION),
        LogText(key=EXECUTION, text="name: digits\n", artifact_file="study.yaml"),
        LogInputs(key=EXECUTION, name="digits", digest="ab12cd34", source="digits", num_rows=9, image_shape=(1, 8, 8)),
        start(STAGE, EXECUTION),
        start(
            TRIAL, STAGE, **{"recipe.learning_rate": 0.001234567891, "topology.depth": 4, "recipe.gradient_clip": None}
        ),
        metrics(TRIAL, 0.5, 0.75),
        metrics(TRIAL, 0.8, math.inf, math.nan, name="val_loss"),
        SetTags(key=TRIAL, tags={"vitsearch.state": "complete"}),
        EndRun(key=TRIAL, status="FINISHED", end_time_ms=NOW + 5000),
        LogArtifact(key=STAGE, path=str(folder), artifact_path="champion"),
        RegisterModel(
            key=STAGE, name="digits", artifact_path="champion", alias="champion", tags={"topology": "as-vit:8"}
        ),
        EndRun(key=STAGE, status="FINISHED", end_time_ms=NOW + 6000),
        EndRun(key=EXECUTION, status="KILLED", end_time_ms=NOW + 7000),
    ]


def snapshot(home: Path) -> dict[str, Any]:
    """Everything that a person can see of the study."""
    mlflow = client(home)
    seen: dict[str, Any] = {"models": [dict(m, tags=m.tags) for m in mlflow.search_model_versions("name = 'digits'")]}
    seen["experiments"] = [dict(e) for e in mlflow.search_experiments()]
    for key, run in runs(home).items():
        histories = {
            name: [dict(m) for m in mlflow.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
        }
        files = [f.path for f in mlflow.list_artifacts(run.info.run_id)]
        seen[key] = (dict(run.info), run.data.to_dictionary(), run.inputs.to_dictionary(), histories, files)
    return seen


def test_every_event_survives_json(tmp_path: Path) -> None:
    others = [ResumeRun(key=TRIAL), MoveRun(key=STAGE, parent_key=EXECUTION), DeleteExperiment(name="digits")]
    for event in [*whole_study(tmp_path), *others, DescribeExperiment(experiment="digits", text="*won*")]:
        read = event_from_json(event_to_json(event))
        assert repr(read) == repr(event)  # compared as text, where a NaN equals itself


def test_delivering_everything_twice_changes_nothing(home: Path, tracker: Tracker) -> None:
    events = whole_study(home)
    tracker.deliver(events)
    once = snapshot(home)
    tracker.deliver(events)
    assert snapshot(home) == once


def test_delivering_again_by_a_process_that_knows_no_run_ids_changes_nothing(home: Path, tracker: Tracker) -> None:
    events = whole_study(home)
    tracker.deliver(events)
    once = snapshot(home)
    make_tracker(home).deliver(events)
    assert snapshot(home) == once


def test_runs_are_nested_and_end_with_their_status(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    found = runs(home)
    assert set(found) == {EXECUTION, STAGE, TRIAL}
    assert "mlflow.parentRunId" not in found[EXECUTION].data.tags
    assert found[STAGE].data.tags["mlflow.parentRunId"] == found[EXECUTION].info.run_id
    assert found[TRIAL].data.tags["mlflow.parentRunId"] == found[STAGE].info.run_id
    assert found[TRIAL].info.run_name == "3"
    assert (found[TRIAL].info.status, found[EXECUTION].info.status) == ("FINISHED", "KILLED")
    assert (found[TRIAL].info.start_time, found[TRIAL].info.end_time) == (NOW, NOW + 5000)


def test_parameters_read_well_in_a_table(home: Path, tracker: Tracker) -> None:
    tracker.deliver(
        [start(TRIAL, a_float=0.001234567891, whole=4, yes=True, nothing=None, long="x" * 7000, **{"a(b)": 1})]
    )
    params = runs(home)[TRIAL].data.params
    assert params.pop("long") == "x" * 6000
    assert params == {"a_float": "0.001235", "whole": "4", "yes": "true", "nothing": "none", "a_b_": "1"}


def test_curves_keep_step_and_time_and_values_that_are_not_finite_become_a_tag(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    run = runs(home)[TRIAL]
    history = client(home).get_metric_history(run.info.run_id, "val_accuracy")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(1, 0.5, NOW + 1), (2, 0.75, NOW + 2)]
    assert run.data.metrics == {"val_accuracy": 0.75, "val_loss": 0.8}
    assert run.data.tags["not_finite.val_loss"] == "nan at step 3"


def test_more_metrics_and_parameters_than_fit_one_request_all_arrive(home: Path, tracker: Tracker) -> None:
    many = {f"p{number}": number for number in range(250)}
    other = f"{STUDY}/trial/4"
    curves = [metrics(key, *[float(step) for step in range(800)]) for key in (TRIAL, other, TRIAL)]
    tracker.deliver([start(TRIAL, **many), start(other), *curves, metrics(TRIAL, *[0.5] * 1500, name="val_loss")])
    run = runs(home)[TRIAL]
    assert len(run.data.params) == 250
    assert len(client(home).get_metric_history(run.info.run_id, "val_accuracy")) == 800
    assert len(client(home).get_metric_history(run.info.run_id, "val_loss")) == 1500


def test_a_dataset_input_carries_its_digest_and_context(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    (dataset_input,) = runs(home)[EXECUTION].inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("digits", "ab12cd34")
    assert dataset_input.dataset.profile == '{"num_rows": 9}'
    assert [(tag.key, tag.value) for tag in dataset_input.tags] == [("mlflow.data.context", "training")]


def test_files_lie_under_the_artifact_root(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    found = runs(home)
    folder = home / "artifacts" / "digits"
    assert (folder / found[EXECUTION].info.run_id / "artifacts" / "study.yaml").read_text() == "name: digits\n"
    assert (folder / found[STAGE].info.run_id / "artifacts" / "champion" / "best.yaml").exists()


def test_the_alias_leads_to_the_registered_files_and_moves_on(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    mlflow = client(home)
    version = mlflow.get_model_version_by_alias("digits", "champion")
    assert version.run_id == runs(home)[STAGE].info.run_id
    assert version.source.endswith("/artifacts/champion")
    assert version.tags["topology"] == "as-vit:8"
    assert "models:/digits@champion" in mlflow.get_registered_model("digits").description
    again = RegisterModel(key=TRIAL, name="digits", artifact_path="champion", alias="champion")
    tracker.deliver([again, again])
    assert int(mlflow.get_model_version_by_alias("digits", "champion").version) == 2
    assert len(mlflow.search_model_versions("name = 'digits'")) == 2


def test_the_champion_of_an_owner_of_a_service_is_registered_under_its_full_name(home: Path, tracker: Tracker) -> None:
    name = full_name("digits", "ann")
    register = RegisterModel(key=STAGE, name=name, artifact_path="champion", alias="champion")
    tracker.deliver([*whole_study(home), register])
    assert client(home).get_model_version_by_alias(name, "champion").source.endswith("/artifacts/champion")


def test_a_deleted_experiment_leaves_its_name_to_a_new_one(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    tracker.deliver([DeleteExperiment(name="digits"), DeleteExperiment(name="digits"), DeleteExperiment(name="never")])
    assert client(home).get_experiment_by_name("digits") is None
    tracker.deliver([EnsureExperiment(name="digits"), start(f"{STUDY}/execution/2")])
    assert set(runs(home)) == {f"{STUDY}/execution/2"}


def test_deleting_a_study_deletes_its_files_and_models_and_nothing_else(home: Path, tracker: Tracker) -> None:
    mlflow = client(home)
    tracker.deliver(whole_study(home))
    experiment = mlflow.get_experiment_by_name("digits")
    other = mlflow.create_run(experiment.experiment_id, run_name="made by someone else")
    mlflow.log_text(other.info.run_id, "mine", "notes.txt")
    mlflow.create_model_version("digits", other.info.artifact_uri, other.info.run_id, await_creation_for=0)
    tracker.deliver([DeleteExperiment(name="digits")])
    assert [path.name for path in (home / "artifacts").rglob("*") if path.is_file()] == ["notes.txt"]
    assert [version.run_id for version in mlflow.search_model_versions("name = 'digits'")] == [other.info.run_id]


def test_deleting_a_study_deletes_a_model_that_has_no_other_versions(home: Path, tracker: Tracker) -> None:
    tracker.deliver([*whole_study(home), DeleteExperiment(name="digits"), DeleteExperiment(name="digits")])
    assert [path for path in (home / "artifacts").rglob("*") if path.is_file()] == []
    assert client(home).search_registered_models() == []


def test_an_experiment_deleted_by_hand_while_the_study_runs_is_made_again(home: Path, tracker: Tracker) -> None:
    tracker.deliver([start(EXECUTION)])
    client(home).delete_experiment(client(home).get_experiment_by_name("digits").experiment_id)
    tracker.deliver([start(TRIAL, EXECUTION)])
    assert set(runs(home)) == {TRIAL}


def test_a_run_that_ended_can_be_resumed(home: Path, tracker: Tracker) -> None:
    tracker.deliver([start(TRIAL), EndRun(key=TRIAL, status="KILLED", end_time_ms=NOW), ResumeRun(key=TRIAL)])
    assert runs(home)[TRIAL].info.status == "RUNNING"


def test_an_event_of_an_unknown_run_is_rejected_by_its_index(home: Path, tracker: Tracker) -> None:
    events: Sequence[Event] = [start(TRIAL), metrics(TRIAL, 0.5), metrics("study/7/trial/99", 0.5), metrics(TRIAL, 0.6)]
    with pytest.raises(TrackingRejected, match="trial/99") as caught:
        tracker.deliver(events)
    assert caught.value.num_delivered == 2
    tracker.deliver(events[3:])
    assert runs(home)[TRIAL].data.metrics == {"val_accuracy": 0.6}


def test_changed_parameters_and_missing_files_are_rejected(home: Path, tracker: Tracker) -> None:
    tracker.deliver([start(TRIAL, depth=4)])
    with pytest.raises(TrackingRejected):
        tracker.deliver([start(TRIAL, depth=5)])
    with pytest.raises(TrackingRejected, match=r"gone\.txt"):
        tracker.deliver([LogArtifact(key=TRIAL, path=str(home / "gone.txt"))])
    assert runs(home)[TRIAL].data.params == {"depth": "4"}


def test_files_in_an_object_store_are_read_on_the_machine_that_delivers_them(
    home: Path, tracker: Tracker, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = local_place(s3.root, home / "another") / "studies" / "digits-7" / "train" / "curves.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"picture")
    published(there)
    there.unlink()
    monkeypatch.setenv(CACHE_VARIABLE, "")
    use_cache(home / "cache", 1.0)
    tracker.deliver([start(TRIAL), LogArtifact(key=TRIAL, path=str(there), artifact_path="plots")])
    folder = home / "artifacts" / "digits" / runs(home)[TRIAL].info.run_id
    assert (folder / "artifacts" / "plots" / "curves.png").read_bytes() == b"picture"
    assert not there.exists()


def test_a_run_whose_parent_was_refused_starts_without_it(home: Path, tracker: Tracker) -> None:
    tracker.deliver([start(TRIAL, "study/7/stage/refused")])
    tags = runs(home)[TRIAL].data.tags
    assert "mlflow.parentRunId" not in tags
    assert tags["vitsearch.parent"] == "study/7/stage/refused"


def test_a_remembered_run_id_that_went_stale_is_looked_up_anew(home: Path, tracker: Tracker) -> None:
    tracker.deliver([start(TRIAL)])
    run_ids = MemoryRunIds()
    run_ids.put(TRIAL, "0" * 32)
    make_tracker(home, run_ids).deliver([SetTags(key=TRIAL, tags={"state": "complete"})])
    assert runs(home)[TRIAL].data.tags["state"] == "complete"
    assert run_ids.get(TRIAL) == runs(home)[TRIAL].info.run_id


def test_the_address_of_an_experiment_opens_the_table_of_runs_in_a_view(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    url = tracker.experiment_url("digits", server_url="http://127.0.0.1:5000/", view="trials")
    assert url == "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=trials"
    assert tracker.experiment_url("unknown", server_url="http://127.0.0.1:5000") is None
    state = state_of_saved_view(client(home).get_experiment_by_name("digits").tags["mlflow.sharedViewState.trials"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val_accuracy`", False)
    with pytest.raises(ValueError, match="server_url"):
        tracker.experiment_url("digits")


def test_a_described_experiment_links_to_what_mlflow_has(home: Path, tracker: Tracker) -> None:
    tracker.deliver(whole_study(home))
    text = f"[best](run:{TRIAL}), [plots](plots:{STAGE}), [all](view:trials), [model](model:digits), [no](run:x) "
    text += "[x](view:y)"
    tracker.deliver([DescribeExperiment(experiment="digits", text=text)])
    found = runs(home)
    trial, stage = (f"#/experiments/1/runs/{found[key].info.run_id}" for key in (TRIAL, STAGE))
    assert client(home).get_experiment_by_name("digits").tags["mlflow.note.content"] == (
        f"[best]({trial}), [plots]({stage}/artifacts/plots), "
        "[all](#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=trials), [model](#/models/digits), "
        "no x"
    )


def test_a_run_moves_below_another_and_an_unknown_one_is_no_error(home: Path, tracker: Tracker) -> None:
    later = f"{STUDY}/execution/2"
    tracker.deliver([start(EXECUTION), start(STAGE, EXECUTION), start(later), MoveRun(key=STAGE, parent_key=later)])
    tracker.deliver([MoveRun(key=f"{STUDY}/stage/never", parent_key=later), MoveRun(key=STAGE, parent_key="never")])
    found = runs(home)
    assert found[STAGE].data.tags["mlflow.parentRunId"] == found[later].info.run_id


def test_a_run_is_renamed_and_loses_tags_by_its_tags(home: Path, tracker: Tracker) -> None:
    tags = {"mlflow.runName": "05 · 99.2 % · 332k", "vitsearch.reason": "why"}
    tracker.deliver([start(TRIAL), SetTags(key=TRIAL, tags=tags)])
    assert runs(home)[TRIAL].info.run_name == "05 · 99.2 % · 332k"
    tracker.deliver([SetTags(key=TRIAL, tags={"a": "b"}, removed=("vitsearch.reason", "never"))] * 2)
    found = runs(home)[TRIAL].data.tags
    assert found["a"] == "b"
    assert "vitsearch.reason" not in found


def test_parameters_of_an_older_version_with_more_digits_are_kept(home: Path, tracker: Tracker) -> None:
    tracker.deliver([start(TRIAL, rate="0.00123457")])
    tracker.deliver([start(TRIAL, rate=0.001234567, depth=4)])
    assert runs(home)[TRIAL].data.params == {"rate": "0.00123457", "depth": "4"}


class ReplayedRunIds(MemoryRunIds):
    """Run ids of a study whose events are kept, as those of our tables."""

    def expects_runs(self) -> bool:
        return bool(self._ids)


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "another store"])
def test_an_experiment_that_is_gone_is_noticed_before_anything_is_written(home: Path, is_deleted: bool) -> None:
    run_ids = ReplayedRunIds()
    events = whole_study(home)
    make_tracker(home, run_ids).deliver(events)
    mlflow = client(home)
    if is_deleted:
        mlflow.delete_experiment(mlflow.get_experiment_by_name("digits").experiment_id)
    else:
        mlflow.rename_experiment(mlflow.get_experiment_by_name("digits").experiment_id, "renamed")
    with pytest.raises(ExperimentGone):
        make_tracker(home, run_ids).deliver([*events[:1], start(f"{STUDY}/execution/2")])
    assert mlflow.get_experiment_by_name("digits") is None
    run_ids._ids.clear()
    make_tracker(home, run_ids).deliver(events)
    assert set(runs(home)) == {EXECUTION, STAGE, TRIAL}
    champion = mlflow.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == runs(home)[STAGE].info.run_id


def test_a_damaged_database_is_reported_as_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but long enough to be looked at as if it were one" * 20)
    with pytest.raises(TrackingUnavailable, match="not a database"):
        make_tracker(tmp_path).deliver([EnsureExperiment(name="digits")])


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, orchestrator.tracking.outbox, orchestrator.tracking.server; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_server_is_started_on_a_server(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a server already"):
        server_command("http://tracking.example:5000", tmp_path, port=5000)


def test_a_server_that_is_away_is_called_once_and_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(*arguments: object, **_named: object) -> None:
        calls.append(arguments)
        raise ConnectionRefusedError

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    with pytest.raises(TrackingUnavailable) as caught:
        Tracker("http://user:secret@127.0.0.1:9", tmp_path).deliver([EnsureExperiment(name="digits")])
    assert len(calls) == 1
    assert caught.value.num_delivered == 0
    assert not caught.value.answered
    assert "secret" not in str(caught.value)
