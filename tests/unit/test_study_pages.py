"""Long lists of studies and trials in pages, on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from orchestrator.store.records import EndedTrial
from orchestrator.store.repository import Store
from orchestrator.store.service_records import ACTIVE, NewSubmission, WantedDevices
from orchestrator.store.study_names import home_owner
from trainers.config import EpochReport, TaskOutcome


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store.open(database_url)
    for name in ("a_1", "b%2", "c"):
        store.create_study(
            name, spec={}, digest="d", data_digest="e", stage_names=[("screen", "screen"), ("t", "train")]
        )
    yield store
    store.close()


def report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch, train_loss=1, val_loss=1, val_accuracy=0.5, learning_rate=0.1, num_images=1, wall_time_s=1
    )


def test_studies_are_read_in_pages_with_filters(store: Store) -> None:
    pages = store.pages()
    first = pages.studies(limit=2)
    assert [one.name for one in first] == ["c", "b%2"]
    assert [one.name for one in pages.studies(before=first[-1].id, limit=2)] == ["a_1"]
    assert [one.name for one in pages.studies(text="%", limit=9)] == ["b%2"]
    assert [one.name for one in pages.studies(text="_", limit=9)] == ["a_1"]
    assert pages.studies(states={"running"}, limit=9) == pages.studies(states=set(), limit=9) == []
    assert len(pages.studies(states={"waiting"}, owner=first[0].owner, limit=9)) == 3
    assert pages.studies(owner="nobody", limit=9) == []
    store.create_study("x_y~d", spec={}, digest="d", data_digest="e", stage_names=[])
    assert pages.study_names(seen_by="x_y", limit=9) == ["x_y~d"]
    assert pages.study_names(seen_by="xay", limit=9) == []
    assert pages.study_names(seen_by=home_owner(), limit=9) == ["c", "b%2", "a_1"]
    store.queue().add(NewSubmission("u", "x_y", "x_y~d", {}, "", WantedDevices(), "d", shared=True))
    assert [one.name for one in pages.studies(seen_by="xay", limit=9)] == ["x_y~d"]
    store.delete_study(pages.studies(limit=1)[0].id)
    assert pages.study_counts() == {"waiting": 3}


def test_a_study_that_waits_again_is_found_with_the_waiting_ones(store: Store) -> None:
    study = store.find_study("c")
    assert study is not None
    execution = store.begin_execution(study.id)
    store.end_execution(execution, "complete")
    pages = store.pages()
    assert [one.name for one in pages.studies(states={"waiting"}, or_submitted=ACTIVE, limit=9)] == ["b%2", "a_1"]
    store.queue().add(NewSubmission("u", "me", "c", {}, "", WantedDevices(), "d"))
    assert [one.name for one in pages.studies(states={"waiting"}, or_submitted=ACTIVE, limit=9)] == ["c", "b%2", "a_1"]
    assert [one.name for one in pages.studies(states={"waiting"}, limit=9)] == ["b%2", "a_1"]


def test_stages_and_newest_submissions_of_many_studies_are_read_at_once(store: Store) -> None:
    studies = store.pages().studies(limit=9)
    ids = [study.id for study in studies]
    assert store.pages().stages(ids) == {study.id: store.stages(study.id) for study in studies}
    assert store.pages().trial_counts(*ids) == {}
    queue = store.queue()
    first = queue.add(NewSubmission("u1", "me", "c", {}, "", WantedDevices(), "d"))
    queue.request_cancel(first.uid)
    queue.add(NewSubmission("u2", "me", "c", {}, "", WantedDevices(), "e"))
    assert queue.find_latest_of(["c", "a_1"]) == {"c": queue.find_latest("c")}
    assert queue.find_latest_of([]) == {}


def test_the_database_finds_the_best_and_the_running_trials_of_a_stage(store: Store) -> None:
    study = store.find_study("c")
    assert study is not None
    execution, (_, train) = store.begin_execution(study.id), store.stages(study.id)
    nan, inf = float("nan"), float("inf")
    values: list[tuple[float, float] | None] = [(0.5, 2.0), (nan, 0.5), (0.9, nan), (0.7, inf), (0.5, 1.0), (-inf, 3.0)]
    ids = []
    for number, pair in enumerate([*values, None, None, None, None]):
        begun = store.begin_trial(train, execution, number=number, point={}, sampler_state={}, seed=1)
        ids.append(begun[0].id)
        if number < len(values):
            metrics = dict(zip(("val_accuracy", "val_loss"), pair or (), strict=True))
            store.end_trial(EndedTrial.of(*begun, TaskOutcome(state="complete", metrics=metrics)), study_id=study.id)
    failed = store.begin_trial(train, execution, number=10, point={}, sampler_state={}, seed=1)
    store.end_trial(EndedTrial.of(*failed, TaskOutcome(state="failed", error="exception")), study_id=study.id)
    pages = store.pages()

    def best(key: str, limit: int, *, is_highest: bool) -> list[int]:
        found = pages.best_trials(train.id, key, is_highest=is_highest, limit=limit)
        return [ids.index(one) for one in found]

    assert best("val_accuracy", 3, is_highest=True) == [2, 3, 0]
    assert best("val_accuracy", 9, is_highest=True) == [2, 3, 0, 4, 1, 5]
    assert best("val_accuracy", 1, is_highest=False) == [0]
    assert best("val_loss", 2, is_highest=False) == [1, 4]
    assert best("val_loss", 9, is_highest=True) == [5, 0, 4, 1, 2, 3]
    assert best("val_f1", 9, is_highest=True) == []
    assert [ids.index(one) for one in pages.running_trials(train.id, limit=3)] == [9, 8, 7]
    assert [one.number for one in pages.trials_by_id([ids[2], ids[0]])] == [0, 2]


def test_the_database_finds_the_best_value_of_each_stage_also_beside_values_that_are_no_numbers(store: Store) -> None:
    nan, inf = float("nan"), float("inf")
    values = {
        "a_1": [(0.5, 2.0), (0.9, nan), (nan, 1.0), (0.7, inf), (inf, -inf)],
        "b%2": [(nan, nan)],
        "c": [(0.25, 3.0), (0.125, 0.5)],
    }
    ids = {}
    for name, rows in values.items():
        study = store.find_study(name)
        assert study is not None
        execution, (_, train) = store.begin_execution(study.id), store.stages(study.id)
        ids[name] = train.id
        for number, (accuracy, loss) in enumerate(rows):
            begun = store.begin_trial(train, execution, number=number, point={}, sampler_state={}, seed=1)
            outcome = TaskOutcome(state="complete", metrics={"val_accuracy": accuracy, "val_loss": loss})
            store.end_trial(EndedTrial.of(*begun, outcome), study_id=study.id)
        store.begin_trial(train, execution, number=len(rows), point={}, sampler_state={}, seed=1)
    pages, stages = store.pages(), list(ids.values())
    assert pages.best_values(stages, "val_accuracy", is_highest=True) == {ids["a_1"]: 0.9, ids["c"]: 0.25}
    assert pages.best_values(stages, "val_loss", is_highest=False) == {ids["a_1"]: 1.0, ids["c"]: 0.5}
    assert pages.best_values(stages, "val_f1", is_highest=True) == {}
    assert pages.best_values([], "val_accuracy", is_highest=True) == {}


def test_the_newest_time_of_a_stage_is_that_of_its_trials(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    study = store.find_study("c")
    assert study is not None
    execution, (screen, train) = store.begin_execution(study.id), store.stages(study.id)
    pages, start = store.pages(), store.clock.now()

    def newest() -> dict[int, float]:
        return {stage: round(at - start) for stage, at in pages.newest_times([screen.id, train.id]).items()}

    def at(seconds: float) -> None:
        monkeypatch.setattr(store.clock, "now", lambda: start + seconds)

    assert newest() == {}
    at(10)
    first = store.begin_trial(train, execution, number=0, point={}, sampler_state={}, seed=1)
    second = store.begin_trial(train, execution, number=1, point={}, sampler_state={}, seed=1)
    assert newest() == {train.id: 10}
    at(20)
    store.add_report(second[1], report(1), study_id=study.id)
    assert newest() == {train.id: 20}
    at(30)
    outcome = TaskOutcome(state="complete", metrics={})
    store.end_trial(EndedTrial.of(*first, outcome, at=start + 30), study_id=study.id)
    assert newest() == {train.id: 30}
    at(40)
    store.add_report(second[1], report(2), study_id=study.id)
    assert newest() == {train.id: 40}


def test_trials_and_reports_are_read_after_what_is_known(store: Store) -> None:
    study = store.find_study("c")
    assert study is not None
    execution, (screen, train) = store.begin_execution(study.id), store.stages(study.id)
    begun = [
        store.begin_trial(train, execution, number=number, point={}, sampler_state={}, seed=1) for number in range(3)
    ]
    for epoch in (1, 2, 3):
        store.add_report(begun[0][1], report(epoch), study_id=study.id)
    store.end_trial(EndedTrial.of(*begun[0], TaskOutcome(state="complete", metrics={})), study_id=study.id)
    pages, ids = store.pages(), [trial.id for trial, _ in begun]
    assert pages.trial_counts(study.id) == {train.id: {"complete": 1, "running": 2}}
    assert [trial.number for trial in pages.trials([screen.id, train.id], limit=2)] == [0, 1]
    assert [trial.number for trial in pages.trials([train.id], after=ids[1], limit=9)] == [2]
    assert [trial.number for trial in pages.trials([train.id], states={"complete"}, limit=9)] == [0]
    assert pages.trial(train.id, 1) == begun[1][0]
    assert pages.trial(train.id, 9) is None
    assert [report.epoch for report in pages.reports_after(ids[0], 1)] == [2, 3]
    curves = pages.curves(ids[:2])
    assert {trial: [one.epoch for one in curve] for trial, curve in curves.items()} == {ids[0]: [1, 2, 3], ids[1]: []}
    rows = pages.open_trials(study.id, after=ids[2], known=[], limit=9)
    assert [(row["number"], row["state"], row["stage"]) for row in rows] == [(1, "running", "t"), (2, "running", "t")]
    assert [row["number"] for row in pages.open_trials(study.id, after=ids[2], known=[ids[0]], limit=9)] == [0, 1, 2]
    assert [row["number"] for row in pages.open_trials(study.id, after=0, known=[], limit=1)] == [0]


def test_open_trials_are_found_by_their_index(empty_store: Store) -> None:
    engine = empty_store._engine
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL chooses by the sizes of its tables")
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        empty_store.pages().open_trials(1, after=5, known=[1, 2], limit=9)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    statement, parameters = asked[-1]
    with engine.connect() as connection:
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert any("ix_trials_open" in step for step in plan), plan
    assert not any(step.startswith("SCAN trials") for step in plan), plan
