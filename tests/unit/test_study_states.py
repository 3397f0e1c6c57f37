"""All commands, pages and the API use the same word and reason for the state of a study."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.cli.showing import _summary_here
from orchestrator.service.submitting import cancel_study, find_submission, resume_study, submit_study
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import make_spec
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Placement
from orchestrator.store.submission_leases import MAX_DEATHS
from orchestrator.study.access import list_studies
from orchestrator.study.lock import hold_study
from tests.service import client_for, serving

NAME = "digits"
SCREEN = {"stage": "screen", "space": "as-vit", "num_trials": 2, "proxies": ["params"]}
SPEC = make_spec({"study": NAME, "data": {"source": "noise"}, "stages": [SCREEN]})
NO_DATA = "the folder /photos must exist, but does not. Restore it."


class Place(NamedTuple):
    store: Store
    settings: Settings

    def submit(self) -> None:
        submit_study(self.store, SPEC, f"study: {NAME}\n")

    def claim(self) -> tuple[str, int]:
        found = self.store.queue().claim("replica", "box", lambda *_: Placement({}))
        assert found is not None
        return found.uid, found.lease

    def begin(self) -> None:
        self.store.create_study(
            NAME,
            spec=SPEC.model_dump(mode="json"),
            digest=SPEC.digest,
            data_digest="b",
            stage_names=[("screen", "screen")],
        )

    def run(self, state: Any, reason: str | None = None) -> None:
        """An execution of the study."""
        study = self.store.find_study(NAME)
        assert study is not None
        self.store.end_execution(self.store.begin_execution(study.id), state, reason=reason)

    def told(self) -> tuple[str, str | None]:
        """The state and reason that all tell."""
        (line,) = list_studies(self.settings)
        summary = _summary_here(NAME)
        with serving(self.settings) as requests:
            client = client_for(requests)
            (there,) = client.studies()
            view = client.study(NAME)
            pages = [requests.get(path, headers={"Accept": "text/html"}).text for path in ("/", f"/studies/{NAME}")]
            assert [one["state"] for one in client.studies(state=line["state"])] == [line["state"]]
            found = {(one["state"], one["reason"]) for one in (line, summary, there, view)}
        ((state, reason),) = found
        assert all(f'class="state {state}"' in page for page in pages)
        assert reason is None or all(reason in page for page in pages)
        submission = find_submission(self.store, NAME)
        if not submission.is_active and submission.state != "complete":
            assert (submission.state, submission.reason) == (state, reason), "as `watch` tells it"
        return state, reason


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("VITSEARCH_HOME", str(tmp_path / "home"))
    settings = load_settings(tracking=False)
    settings.home.mkdir()
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    yield Place(store, settings)
    store.close()


def test_a_study_that_failed_to_start_has_failed_with_its_reason(place: Place) -> None:
    place.submit()
    place.store.queue().end(*place.claim(), "failed", NO_DATA)
    assert place.told() == ("failed", NO_DATA)


@pytest.mark.parametrize("before", ["interrupted", "complete"])
def test_a_study_that_has_run_and_failed_to_start_again_has_failed(place: Place, before: str) -> None:
    place.begin()
    place.run(before)
    place.submit()
    place.store.queue().end(*place.claim(), "failed", NO_DATA)
    assert place.told() == ("failed", NO_DATA)


def test_a_study_whose_driver_failed_with_an_error_has_failed(place: Place) -> None:
    place.begin()
    place.submit()
    lease = place.claim()
    place.run("interrupted", "KeyError: 4")
    place.store.queue().end(*lease, "failed", "KeyError: 4")
    assert place.told() == ("failed", "KeyError: 4")


def test_a_study_whose_drivers_die_waits_and_then_has_failed(place: Place) -> None:
    place.begin()
    place.submit()
    study = place.store.find_study(NAME)
    assert study is not None
    for _ in range(MAX_DEATHS):
        lease = place.claim()
        place.store.begin_execution(study.id)
        place.store.queue().give_up(*lease, "its driver was killed by signal 9")
        state, reason = place.told()
        assert "its driver was killed by signal 9; " in str(reason)
    assert state == "failed"


def test_a_cancelled_study_is_cancelled_before_and_after_its_begin(place: Place) -> None:
    place.submit()
    cancel_study(place.store, NAME)
    assert place.told() == ("cancelled", None)
    resume_study(place.store, NAME)
    assert place.told() == ("waiting", "waits for its turn")
    lease = place.claim()
    assert place.told() == ("waiting", "waits for its process to start")
    place.begin()
    cancel_study(place.store, NAME)
    place.run("interrupted", "a stop was requested")
    place.store.queue().end(*lease, "interrupted", "it was cancelled")
    assert place.told() == ("cancelled", None)
    resume_study(place.store, NAME)
    assert place.told() == ("waiting", "waits for its turn")


def test_a_study_that_runs_again_outside_the_queue_has_the_state_of_that_run(place: Place) -> None:
    place.begin()
    place.submit()
    place.store.queue().end(*place.claim(), "failed", NO_DATA)
    place.run("complete")
    study = find_study_row(place)
    assert study == ("complete", None)


def find_study_row(place: Place) -> tuple[str, str | None]:
    (line,) = list_studies(place.settings)
    return line["state"], line["reason"]


def test_a_driver_that_holds_a_study_starts_it_or_is_about_to_write_its_end(place: Place) -> None:
    place.begin()
    place.run("interrupted", "a stop was requested")
    place.submit()
    lease = place.claim()
    with hold_study(NAME, place.settings):
        assert place.told() == ("waiting", "waits for its process to start")
        place.run("failed", "no topology could be scored")
        assert place.told() == ("failed", "no topology could be scored")
    place.store.queue().end(*lease, "failed", "no topology could be scored")
    assert place.told() == ("failed", "no topology could be scored")
    resume_study(place.store, NAME)
    place.claim()
    study = place.store.find_study(NAME)
    assert study is not None
    execution = place.store.begin_execution(study.id)
    with hold_study(NAME, place.settings):
        assert place.told() == ("running", None)
        place.store.end_execution(execution, "complete")
        assert place.told() == ("complete", None)
