"""Time and work that executions have spent, without the pauses between them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.records import EndedTrial, ExecutionRecord, StageRecord, StudyRecord
from orchestrator.store.repository import Store
from trainers.config import EpochReport, TaskOutcome


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/vitsearch.db", artifact_root=tmp_path)
    yield store
    store.close()


def begin(store: Store) -> tuple[StudyRecord, StageRecord]:
    study = store.create_study("x", spec={}, digest="d", data_digest="d", stage_names=[("train", "train")])
    return study, store.stages(study.id)[0]


def train(
    store: Store, clock: Clock, stage: StageRecord, execution: ExecutionRecord, number: int, *, ends: bool
) -> None:
    """A trial of 30 s: it starts after 10 s, reports after 20 s, and ends, or its process dies."""
    clock.now += 10
    trial, attempt = store.begin_trial(stage, execution, number=number, point={"x": number}, sampler_state={}, seed=0)
    clock.now += 20
    report = EpochReport(
        epoch=1,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.1,
        num_images=1,
        training_macs=7.0,
        wall_time_s=1.0,
    )
    store.add_report(attempt, report, study_id=stage.study_id)
    clock.now += 10
    if ends:
        ended = EndedTrial.of(trial, attempt, TaskOutcome(state="complete", metrics={"val_accuracy": 0.5}))
        store.end_trial(ended, study_id=stage.study_id)


def test_pauses_between_executions_do_not_count(store: Store, clock: Clock) -> None:
    study, stage = begin(store)
    first = store.begin_execution(study.id)
    train(store, clock, stage, first, 0, ends=True)
    clock.now += 5
    store.end_execution(first, "interrupted")
    clock.now += 10_000
    second = store.begin_execution(study.id)
    assert store.spent_s(study.id, before=first) == 0
    assert store.spent_s(study.id, before=second) == 45
    assert store.stage_spent_s(stage.id) == 30


def test_an_execution_whose_process_died_ended_with_its_last_report(store: Store, clock: Clock) -> None:
    study, stage = begin(store)
    first = store.begin_execution(study.id)
    train(store, clock, stage, first, 0, ends=True)
    train(store, clock, stage, first, 1, ends=False)
    clock.now += 10_000
    second = store.begin_execution(study.id)  # marks the first as lost
    assert store.executions(study.id)[0].state == "lost"
    assert store.spent_s(study.id, before=second) == 70
    assert store.stage_spent_s(stage.id) == 60
    trial = store.trials(stage.id)[1]
    attempt = store.resume_trial(trial, second)
    assert attempt is not None
    clock.now += 15
    store.lose_attempt(trial, attempt)
    assert store.stage_spent_s(stage.id) == 60  # it reported nothing


def test_the_work_of_trainings_is_that_of_their_reports(store: Store, clock: Clock) -> None:
    study, stage = begin(store)
    execution = store.begin_execution(study.id)
    train(store, clock, stage, execution, 0, ends=True)
    train(store, clock, stage, execution, 1, ends=True)
    assert store.trained_macs(study.id, but_stage=0) == 14.0
    assert store.trained_macs(study.id, but_stage=stage.id) == 0.0
