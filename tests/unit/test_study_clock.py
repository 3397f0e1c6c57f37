"""The clock of a study: a clock that is set back or forward changes no duration."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.reports.summary import study_summary
from orchestrator.reports.trial_table import trial_rows
from orchestrator.store.records import EndedTrial, ExecutionRecord, StageRecord, StudyRecord
from orchestrator.store.repository import Store
from orchestrator.store.study_clock import StudyClock
from trainers.config import EpochReport, TaskOutcome

BACK_S = -63_072_000.0
"""Two years."""


class Clocks:
    """The clocks of a machine: one that can be set, and one that only time moves."""

    def __init__(self) -> None:
        self.wall, self.steady = 1.7e9, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def set_by(self, seconds: float) -> None:
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(time, "time", lambda: clocks.wall)
    monkeypatch.setattr(time, "monotonic", lambda: clocks.steady)
    return clocks


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/vitsearch.db", artifact_root=tmp_path)
    yield store
    store.close()


def begin(store: Store) -> StudyRecord:
    return store.create_study("x", spec={"seed": 0}, digest="d", data_digest="d", stage_names=[("train", "train")])


def reported(store: Store, stage: StageRecord) -> list[dict[str, object]]:
    study = store.find_study("x")
    assert study is not None
    return list(trial_rows(store, study, [stage]))


def wall_time_s(store: Store) -> float:
    study = store.find_study("x")
    assert study is not None
    (stage,) = study_summary(store, study)["stages"]
    found: float = stage["wall_time_s"]
    return found


def train(store: Store, clocks: Clocks, execution: ExecutionRecord, stage: StageRecord, *, jump_s: float) -> None:
    """A trial of 30 s, during which the clock is set."""
    trial, attempt = store.begin_trial(stage, execution, number=0, point={"x": 1}, sampler_state={}, seed=0)
    clocks.pass_by(10)
    clocks.set_by(jump_s)
    clocks.pass_by(20)
    ended = EndedTrial.of(trial, attempt, TaskOutcome(state="complete"), at=store.clock.now())
    store.end_trial(ended, study_id=stage.study_id)


def report(store: Store, stage: StageRecord, attempt: object, epoch: int) -> None:
    values = {"train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "learning_rate": 0.1, "num_images": 1}
    made = EpochReport(epoch=epoch, **values, training_macs=7.0, wall_time_s=1.0)  # type: ignore[arg-type]
    store.add_report(attempt, made, study_id=stage.study_id)  # type: ignore[arg-type]


def test_the_clock_follows_the_machine_until_an_execution_begins_and_then_only_time(clocks: Clocks) -> None:
    clock = StudyClock()
    assert clock.now() == clocks.wall
    began = clock.begin()
    assert began == clocks.wall
    clocks.pass_by(5)
    clocks.set_by(BACK_S)
    assert clock.now() == began + 5
    assert clock.begin(not_before=began + 7) == began + 7
    clocks.set_by(-2 * BACK_S)
    clocks.pass_by(1)
    assert clock.now() == began + 8


@pytest.mark.parametrize("jump_s", [BACK_S, -BACK_S])
def test_a_clock_that_is_set_during_a_study_changes_no_duration(store: Store, clocks: Clocks, jump_s: float) -> None:
    study = begin(store)
    execution = store.begin_execution(study.id)
    stage = store.begin_stage(store.stages(study.id)[0], execution=execution)
    train(store, clocks, execution, stage, jump_s=jump_s)
    store.end_stage(stage, "complete", execution=execution)
    store.end_execution(execution, "complete")
    assert wall_time_s(store) == 30
    assert store.stage_spent_s(stage.id) == 30
    assert reported(store, stage)[0]["wall_time_s"] == 30


def test_a_clock_that_is_set_back_between_two_executions_changes_no_duration(store: Store, clocks: Clocks) -> None:
    study = begin(store)
    first = store.begin_execution(study.id)
    stage = store.begin_stage(store.stages(study.id)[0], execution=first)
    clocks.pass_by(40)
    store.end_stage(stage, "interrupted", execution=first)
    store.end_execution(first, "interrupted")
    clocks.set_by(BACK_S)
    store.clock = StudyClock()  # another process resumes it
    second = store.begin_execution(study.id)
    stage = store.begin_stage(stage, execution=second)
    train(store, clocks, second, stage, jump_s=0)
    store.end_stage(stage, "complete", execution=second)
    store.end_execution(second, "complete")
    assert store.spent_s(study.id, before=second) == 40
    assert wall_time_s(store) == 70
    times = [one for execution in store.executions(study.id) for one in (execution.started_at, execution.ended_at)]
    assert times == sorted(times, key=lambda one: one or 0.0)


def test_a_pause_after_a_death_counts_neither_for_the_stage_nor_for_its_trials(store: Store, clocks: Clocks) -> None:
    study = begin(store)
    first = store.begin_execution(study.id)
    stage = store.begin_stage(store.stages(study.id)[0], execution=first)
    trial, attempt = store.begin_trial(stage, first, number=0, point={"x": 1}, sampler_state={}, seed=0)
    clocks.pass_by(20)
    report(store, stage, attempt, 1)
    clocks.pass_by(86_400)  # its process died, and somebody resumes it on the next day
    second = store.begin_execution(study.id)
    stage = store.begin_stage(stage, execution=second)
    attempt_again = store.resume_trial(trial, second)
    assert attempt_again is not None
    clocks.pass_by(10)
    ended = EndedTrial.of(trial, attempt_again, TaskOutcome(state="complete"), at=store.clock.now())
    store.end_trial(ended, study_id=study.id)
    store.end_stage(stage, "complete", execution=second)
    store.end_execution(second, "complete")
    assert reported(store, stage)[0]["wall_time_s"] == 30
    assert wall_time_s(store) == 30
    assert store.spent_s(study.id, before=second) == 20
