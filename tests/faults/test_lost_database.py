"""If PostgreSQL stops or crashes during a study, the driver waits for it for a limited time."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.store.locks import StudyLock
from tests.faults.driver import run, start
from tests.faults.killing import Moment, assert_epochs_are_kept, moments_over, wait_for, write_study
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true, finished_epochs, place_of
from tests.postgres import PostgresServer
from tests.tiny import FinishedStudy


@pytest.fixture
def server(postgres: PostgresServer) -> PostgresServer:
    if not postgres.can_be_stopped:
        pytest.skip("the given PostgreSQL server is not ours to be stopped")
    return postgres


@pytest.fixture
def place(tmp_path: Path, server: PostgresServer) -> Place:
    return Place(tmp_path / "home", server.new_database())


def moments(tiny: FinishedStudy, count: int) -> list[Moment]:
    with place_of(tiny).watch() as query:
        return moments_over(query.steps(), count=count, seed=17)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_study_waits_for_a_database_that_is_started_again(
    sent: signal.Signals, tiny: FinishedStudy, place: Place, server: PostgresServer
) -> None:
    driver = start(place, "run", write_study(place), "--quiet", VITSEARCH_TRACKING="on")
    for moment in moments(tiny, 3):
        wait_for(place, moment, driver)
        assert driver.is_alive(), driver.err
        before = finished_epochs(place)
        server.stop(sent)
        time.sleep(0.5)
        server.start()
        assert_epochs_are_kept(place, before)
    assert driver.wait() == 0, driver.err
    assert "The database does not answer" in driver.err
    assert "The database answers again" in driver.err
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)
    rows = place.rows()
    assert rows.executions == ["complete"]
    assert place.query("SELECT count(*) FROM attempts WHERE state = 'lost'") == [(0,)]
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]


@pytest.mark.slow
def test_a_study_whose_database_stays_away_says_so_and_goes_on_later(
    tiny: FinishedStudy, place: Place, server: PostgresServer
) -> None:
    file = write_study(place)
    driver = start(place, "run", file, "--quiet", VITSEARCH_DATABASE_WAIT_S="1")
    wait_for(place, moments(tiny, 2)[1], driver)
    server.stop()
    try:
        assert driver.wait() == 1, driver.err
        away = run(place, "status", "tiny")
    finally:
        server.start()
    assert "must answer, but did not for 1 s" in driver.err
    assert "Traceback" not in driver.err
    assert (away.process.exitcode, "start the server" in away.err) == (2, True)
    assert "Traceback" not in away.err
    assert "interrupted" in run(place, "status", "tiny").err
    assert run(place, "run", file, "--quiet").process.exitcode == 0
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)
    assert place.rows().executions == ["lost", "complete"]


@pytest.mark.slow
def test_threads_that_find_the_database_again_at_once_keep_the_lock(server: PostgresServer) -> None:
    with StudyLock(server.new_database(), "tiny") as lock, ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            server.stop(signal.SIGKILL)
            server.start()
            for renewed in [threads.submit(lock.renew) for _ in range(8)]:
                renewed.result()
        assert lock.is_taken()
