"""Two homes, as on two machines, share a PostgreSQL database: a study is run by one of them at a time."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.driver import run, start
from tests.faults.killing import Moment, wait_for, write_study
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true
from tests.postgres import PostgresServer
from tests.tiny import FinishedStudy


@pytest.fixture
def here(tmp_path: Path, postgres: PostgresServer) -> Place:
    return Place(tmp_path / "here" / "home", postgres.new_database())


@pytest.fixture
def there(tmp_path: Path, here: Place) -> Place:
    return Place(tmp_path / "there" / "home", here.database_url)


def test_a_study_that_runs_elsewhere_is_shown_as_running_and_not_run_twice(here: Place, there: Place) -> None:
    driver = start(here, "run", write_study(here), "--quiet")
    wait_for(here, Moment(3, 0), driver)
    refused = run(there, "run", write_study(there), "--quiet")
    shown = run(there, "status", "tiny")
    driver.kill()
    driver.wait()
    assert (refused.process.exitcode, "another process is running it" in refused.err) == (1, True)
    assert "tiny: running" in shown.err
    assert "tiny: interrupted" in run(there, "status", "tiny").err


@pytest.mark.slow
def test_a_driver_that_lost_its_lock_cannot_write_into_the_study_of_the_next(
    tiny: FinishedStudy, here: Place, there: Place, tmp_path: Path
) -> None:
    here, there = (replace(place, artifact_root=tmp_path / "artifacts") for place in (here, there))
    first = start(here, "run", write_study(here), "--quiet", prepare="tests.faults.troubles:result_is_late")
    while not (here.home.parent / "trained").exists():
        assert first.is_alive(), first.err
        time.sleep(0.01)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    assert here.query(cut) == [(True,)]
    second = run(there, "run", write_study(there), "--quiet")
    assert second.process.exitcode == 0, second.err
    (tmp_path / "here" / "go-on").touch()
    assert first.wait() == 1
    assert "another process is running it" in first.err
    assert "Traceback" not in first.err
    assert_rows_are_true(there)
    assert_is_the_same_study(there, tiny)
    assert there.rows().executions == ["lost", "complete"]
