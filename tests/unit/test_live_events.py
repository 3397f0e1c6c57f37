"""The events of a study, and taking them up again anywhere without a gap."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.auth import Caller
from orchestrator.api.errors import RequestError
from orchestrator.api.home import Home, VisibleStudies
from orchestrator.api.live import Cursor, LiveEvent, StudyFollower
from orchestrator.service.access_tokens import create_token, revoke_token
from orchestrator.service.submitting import submit_study
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import parse_spec
from orchestrator.store.records import AttemptRecord, EndedTrial, ExecutionRecord, StageRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.store.study_names import home_owner
from orchestrator.study.lock import hold_study
from tests.service import client_for, golden_settings, serving
from trainers.config import EpochReport, TaskOutcome

SPEC = {"seed": 0, "stages": [{"stage": "train", "num_trials": 4}]}


class Driver:
    """Writes the rows of a running study."""

    def __init__(self, settings: Settings) -> None:
        settings.home.mkdir()
        self.store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
        self.study = self.store.create_study(
            "live", spec=SPEC, digest="a", data_digest="b", stage_names=[("train", "train")]
        )
        self.execution: ExecutionRecord = self.store.begin_execution(self.study.id)
        self.stage: StageRecord = self.store.begin_stage(self.store.stages(self.study.id)[0])
        self.open: dict[int, tuple[TrialRecord, AttemptRecord]] = {}

    def begin(self, number: int) -> None:
        point = {"topology": f"t{number}"}
        self.open[number] = self.store.begin_trial(
            self.stage, self.execution, number=number, point=point, sampler_state={}, seed=1
        )

    def report(self, number: int, epoch: int) -> None:
        report = EpochReport(
            epoch=epoch,
            train_loss=1.0,
            val_loss=float("nan"),
            val_accuracy=epoch / 10,
            learning_rate=0.1,
            num_images=1,
            wall_time_s=1.0,
        )
        self.store.add_report(self.open[number][1], report, study_id=self.study.id)

    def end(self, number: int) -> None:
        trial, attempt = self.open.pop(number)
        outcome = TaskOutcome(state="complete", metrics={"val_accuracy": 0.5})
        self.store.end_trial(EndedTrial.of(trial, attempt, outcome), study_id=self.study.id)

    def finish(self) -> None:
        self.store.end_stage(self.stage, "complete")
        self.store.end_execution(self.execution, "complete")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", tracking=False)


@pytest.fixture
def driver(settings: Settings) -> Iterator[Driver]:
    driver = Driver(settings)
    with hold_study("live", settings):
        yield driver
    driver.store.close()


@pytest.fixture
def home(settings: Settings, driver: Driver) -> Iterator[VisibleStudies]:
    home = Home(settings)
    yield VisibleStudies(home, Caller(owner=home_owner(), role="admin"))
    home.close()


def reports(events: list[LiveEvent]) -> list[tuple[int, int]]:
    return [(event.data["trial"], event.data["epoch"]) for event in events if event.kind == "report"]


def kinds(events: list[LiveEvent]) -> list[tuple[str, Any]]:
    return [(event.kind, event.data.get("state")) for event in events if event.kind != "report"]


def test_each_report_and_each_state_is_told_once(driver: Driver, home: VisibleStudies) -> None:
    follower = StudyFollower(home, "live", Cursor())
    assert kinds(follower.poll()) == [("stage", "running"), ("study", "running")]
    driver.begin(0)
    driver.report(0, 1)
    assert reports(follower.poll()) == [(0, 1)]
    assert follower.poll() == []
    driver.report(0, 2)
    driver.begin(1)
    driver.end(0)
    found = follower.poll()
    assert reports(found) == [(0, 2)]
    assert [event for event in kinds(found) if event[0] == "trial"] == [("trial", "complete"), ("trial", "running")]
    assert next(event.data["best_text"] for event in found if event.kind == "study") == "50.0 %"
    driver.end(1)
    driver.finish()
    assert kinds(follower.poll())[-1] == ("end", "complete")
    assert follower.has_ended


def test_a_client_cut_off_after_any_event_misses_no_report(driver: Driver, home: VisibleStudies) -> None:
    for number in range(3):
        driver.begin(number)
    for epoch in (1, 2):
        for number in (0, 2, 1):
            driver.report(number, epoch)
    driver.end(1)
    driver.begin(3)
    driver.report(3, 1)
    everything = StudyFollower(home, "live", Cursor()).poll()
    wanted = sorted([(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
    assert sorted(reports(everything)) == wanted
    for place in range(len(everything)):
        before = everything[: place + 1]
        after = StudyFollower(home, "live", Cursor.parse(str(before[-1].cursor))).poll()
        assert sorted(reports(before) + reports(after)) == wanted


def test_a_study_that_waits_for_its_turn_is_followed_until_it_is_cancelled(settings: Settings) -> None:
    settings.home.mkdir()
    store = Store.open(settings.database_url)
    text = "study: queued\ndata: {source: digits}\nstages: [{stage: screen, num_trials: 4}]\n"
    submission = submit_study(store, parse_spec(text.encode(), "queued.yaml", folder=settings.home), text)
    home = Home(settings)
    follower = StudyFollower(VisibleStudies(home, Caller(owner=home_owner(), role="admin")), "queued", Cursor())
    assert kinds(follower.poll()) == [("study", "waiting")]
    assert follower.poll() == []
    assert not follower.has_ended
    store.queue().request_cancel(submission.uid)
    assert kinds(follower.poll()) == [("study", "cancelled"), ("end", "cancelled")]
    home.close()
    store.close()


def test_a_study_that_begins_between_two_looks_has_not_ended(home: VisibleStudies) -> None:
    follower = StudyFollower(home, "live", Cursor())
    assert kinds(follower._of_waiting_study()) == [("study", "running")]
    assert not follower.has_ended


def test_a_stream_ends_when_the_token_is_revoked(tmp_path: Path) -> None:
    settings = golden_settings(tmp_path)
    store = Store.open(settings.database_url)
    record, _ = create_token(store, "ann", "admin", days=1)
    home = Home(settings)
    caller = Caller(owner="ann", role="admin", token=record.uid)
    follower = StudyFollower(VisibleStudies(home, caller), "interrupted", Cursor())
    assert follower.poll()
    revoke_token(store, record.uid)
    with pytest.raises(RequestError, match="no longer is") as refused:
        follower.poll()
    assert refused.value.status == 401
    home.close()
    store.close()


def test_many_trials_come_in_parts_and_none_is_left_out(
    driver: Driver, home: VisibleStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.live._BATCH", 2)
    for number in range(7):
        driver.begin(number)
        driver.report(number, 1)
    follower = StudyFollower(home, "live", Cursor())
    parts = [reports(follower.poll()) for _ in range(5)]
    assert [len(part) for part in parts] == [2, 2, 2, 1, 0]
    driver.report(6, 2)
    assert reports(follower.poll()) == [(6, 2)]


@pytest.mark.parametrize("text", ["x", "1;", "1;2", "1;2:3,", "-1", "1" * 30, "1\n", "1;2:3:4", "١"])
def test_an_id_that_is_not_ours_is_refused(text: str, settings: Settings) -> None:
    with pytest.raises(ValueError, match="must be one that this service sent"):
        Cursor.parse(text)


def test_a_cursor_is_read_back() -> None:
    for cursor in (Cursor(), Cursor(7), Cursor(7, {3: 2, 7: 0})):
        assert Cursor.parse(str(cursor)) == cursor


def test_the_client_follows_a_finished_study_to_its_end(tmp_path: Path) -> None:
    with serving(golden_settings(tmp_path)) as requests:
        client = client_for(requests)
        events = list(client.events("finished"))
        half = events[len(events) // 2]
        rest = list(client.events("finished", after=half.id))
        refused = requests.get("/v1/studies/finished/events", headers={"Last-Event-ID": "x"})
    assert events[-1].kind == "end"
    told = [
        (event.data["stage"], event.data["trial"], event.data["epoch"]) for event in events if event.kind == "report"
    ]
    assert len(told) == len(set(told)) > 10
    assert [event for event in rest if event.kind == "report"] == [
        event for event in events[len(events) // 2 + 1 :] if event.kind == "report"
    ]
    assert refused.status_code == 422
