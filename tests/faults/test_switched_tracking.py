"""Tracking switched off and on between executions of a study: MLflow gets only events that it accepts."""

import signal
from typing import Any

import pytest

from tests.faults.driver import Kill, run
from tests.faults.killing import write_study
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true
from tests.run_tree import assert_run_tree
from tests.tiny import FinishedStudy

BEGIN_TRIAL = "orchestrator.store.repository:Store.begin_trial"


def runs_of(place: Place) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.home}/mlflow.db")
    found: list[Any] = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
    return found


def run_switching(place: Place, first: str, second: str, third: str) -> None:
    """Three executions, the first two killed in training."""
    file = write_study(place)
    for tracking in (first, second):
        kills = [Kill(BEGIN_TRIAL, "after", "train", 3)]
        driver = run(place, "run", file, "--quiet", kills=kills, VITSEARCH_TRACKING=tracking)
        assert driver.process.exitcode == -signal.SIGKILL, driver.err
    driver = run(place, "run", file, "--quiet", VITSEARCH_TRACKING=third)
    assert driver.process.exitcode == 0, driver.err
    assert "refuses" not in driver.err
    assert_rows_are_true(place)


@pytest.mark.slow
def test_what_happened_while_tracking_was_off_is_told_when_it_is_on_again(tiny: FinishedStudy, place: Place) -> None:
    run_switching(place, "on", "off", "on")
    assert_is_the_same_study(place, tiny)
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    assert_run_tree(place.home, tiny, num_executions=3)


@pytest.mark.slow
def test_a_study_that_began_without_tracking_can_be_tracked_from_then_on(tiny: FinishedStudy, place: Place) -> None:
    run_switching(place, "off", "off", "on")
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    runs = runs_of(place)
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
    named = {run.info.run_name for run in runs}
    assert {"execution 2", "execution 3", "train", "promote"} <= named
    assert any(name.lstrip("★ ").startswith("08 · ") for name in named)
    assert "screen" not in named
