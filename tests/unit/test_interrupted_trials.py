"""The rows and events of a trial that is interrupted and resumed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord
from orchestrator.store.repository import Store
from orchestrator.tracking.events import LogMetrics, MetricPoint, event_from_json, event_to_json
from trainers.config import EpochReport


class Running:
    """A store with one running trial."""

    def __init__(self, url: str) -> None:
        self.store = Store.open(url)
        self.study: StudyRecord = self.store.create_study(
            "s", spec={}, digest="d", data_digest="d", stage_names=[("train", "train")]
        )
        self.execution: ExecutionRecord = self.store.begin_execution(self.study.id)
        self.stage: StageRecord = self.store.begin_stage(self.store.stages(self.study.id)[0])
        self.trial, self.attempt = self.store.begin_trial(
            self.stage, self.execution, number=0, point={"x": 1}, sampler_state={}, seed=1
        )

    def report(self, epoch: int, *, time_ms: int) -> None:
        report = EpochReport(
            epoch=epoch, train_loss=1, val_loss=1, val_accuracy=0.5, learning_rate=1, num_images=1, wall_time_s=1
        )
        told = LogMetrics(key="trial/0", points=(MetricPoint("val_accuracy", 0.5, epoch, time_ms),))
        self.store.add_report(self.attempt, report, study_id=self.study.id, events=[event_to_json(told)])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(f"sqlite:///{tmp_path}/vitsearch.db")
    yield running
    running.store.close()


def test_an_epoch_that_is_reported_again_after_a_resume_is_sent_to_mlflow_once(running: Running) -> None:
    running.report(1, time_ms=10)
    execution = running.store.begin_execution(running.study.id)
    attempt = running.store.resume_trial(running.trial, execution)
    assert attempt is not None
    running.attempt = attempt
    running.report(1, time_ms=20)
    running.report(2, time_ms=30)
    owed = [event_from_json(text) for _, text in running.store.outbox(running.study.id).owed(10)]
    assert [(point.step, point.time_ms) for event in owed for point in event.points] == [(1, 10), (2, 30)]
    assert [report.epoch for report in running.store.reports(running.trial.id)] == [1, 2]


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_an_execution_that_ends_in_the_middle_of_a_trial_leaves_it_waiting(running: Running, state: str) -> None:
    running.store.end_execution(running.execution, state)
    (trial,) = running.store.trials(running.stage.id)
    assert trial.state == "waiting"
    assert running.store.resume_trial(trial, running.store.begin_execution(running.study.id)) is not None


def test_interruptions_never_count_as_killed_processes(running: Running) -> None:
    for _ in range(20):
        running.store.end_execution(running.execution, "interrupted")
        running.execution = running.store.begin_execution(running.study.id)
        assert running.store.resume_trial(running.trial, running.execution) is not None
