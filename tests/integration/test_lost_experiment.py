"""An experiment that was deleted in MLflow while its study rests."""

from pathlib import Path

import pytest

from orchestrator.settings import Settings
from orchestrator.store.records import StudyRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import tracker_of
from orchestrator.study.tracking_access import compare_page, send_again, study_page
from orchestrator.tracking.events import LogText
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.run_tree import RunTree
from tests.fakes import make_trial
from tests.tiny import CommandLine

SERVER = "http://127.0.0.1:5000"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def deliver_study(settings: Settings) -> StudyRecord:
    """A study with two trials, which MLflow knows."""
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    spec = {"seed": 0, "stages": [{"stage": "train"}]}
    study = store.create_study("digits", spec=spec, digest="d", data_digest="d", stage_names=[("train", "train")])
    tree = RunTree(study, "study: digits\n")
    execution = store.begin_execution(study.id, events=lambda one, _: tree.execution_began(one, []))
    (stage,) = store.stages(study.id)
    store.owe(study.id, tree.stage_began(stage, execution, {}, 1.0))
    for number in (0, 1):
        store.owe(study.id, tree.trial_began(stage, make_trial(number), {"recipe.learning_rate": 0.1}, {}))
    gone = LogText(key=f"{study.uid}/never-started", text="x", artifact_file="x.txt")
    store.owe(study.id, [gone.model_dump_json()])
    store.end_execution(execution, "complete")
    owed = store.outbox(study.id)
    with Outbox(owed, lambda: tracker_of(study, settings, store)) as outbox:
        assert outbox.flush(120.0) == 0
    store.close()
    return study


def test_its_page_and_its_runs_are_there_again_and_what_is_missing_is_counted(
    settings: Settings, command_line: CommandLine
) -> None:
    from mlflow import MlflowClient

    study = deliver_study(settings)
    store = Store.open(settings.database_url)
    (stage,) = store.stages(study.id)
    store.close()
    first = study_page(study, settings, server_url=SERVER)
    assert first == f"{SERVER}/#/experiments/1/runs?workflowType=machine_learning"
    client = MlflowClient(settings.tracking_uri)
    client.delete_experiment("1")
    assert study_page(study, settings, server_url=SERVER) is None
    sent = command_line("sync", "digits", home=settings.home, VITSEARCH_TRACKING="on")
    assert (sent.status, sent.out.partition(" Open")[0]) == (0, "sent all 8 events of study 'digits' to MLflow.")
    assert "MLflow rejected 1 of the 8 events. The first: a run must be started" in sent.err
    assert study_page(study, settings, server_url=SERVER) == first.replace("experiments/1/", "experiments/2/")
    levels = ["execution", "stage", "trial", "trial"]
    assert sorted(run.data.tags["vitsearch.level"] for run in client.search_runs(["2"])) == levels
    client.delete_run(client.search_runs(["2"], "tags.`vitsearch.level` = 'stage'")[0].info.run_id)
    assert send_again(study, settings)[1:3] == (0, 1)
    assert sorted(run.data.tags["vitsearch.level"] for run in client.search_runs(["2"])) == levels
    page = compare_page(study, stage, [1, 0], settings, server_url=SERVER)
    assert page is not None
    assert page.startswith(f"{SERVER}/#/compare-runs?runs=")
    assert compare_page(study, stage, [1, 7], settings, server_url=SERVER) is None
