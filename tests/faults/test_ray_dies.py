"""If Ray dies during a study, the message names the process that died, and the same command continues."""

import pytest

from tests.faults.driver import run
from tests.faults.killing import assert_epochs_are_kept
from tests.faults.on_ray import EACH, SHORT, on_ray, start_on_ray, wait_for_epochs, write_study
from tests.faults.ray_processes import HEAD, RAYLET, are_gone, folders_of, kill, named, started_by
from tests.faults.ray_troubles import SOON_GIVEN_UP
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true, finished_epochs
from tests.tiny import FinishedStudy

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
REASONS = {HEAD: "the head of Ray (GCS)", RAYLET: "Ray's raylet on this machine"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "way", "database_url"),
    [(HEAD, "pool", "postgresql"), (RAYLET, "engine", "sqlite")],
    indirect=["database_url"],
)
def test_a_study_whose_own_ray_is_killed_says_so_and_goes_on(
    what: str, way: str, short: FinishedStudy, place: Place
) -> None:
    file = write_study(place, on_ray(SHORT, way))
    driver = start_on_ray(place, file, "use_killed_head" if what == HEAD else "use_slow")
    wait_for_epochs(place, 2, driver)
    processes = started_by(driver.process.pid)
    if what == RAYLET:
        kill(named(driver.process.pid, what))
    assert driver.wait() == 1, driver.err
    assert REASONS[what] in driver.err
    assert "Run the same command again" in driver.err
    assert "Traceback" not in driver.err
    assert_rows_are_true(place)
    study = place.rows().study
    assert study.state == "interrupted"
    assert (study.reason or "").startswith(REASONS[what])
    assert are_gone(processes)
    assert folders_of(driver.process.pid) == []
    before = finished_epochs(place)
    # As with every change of `engine` and `pool`, it may also go on without Ray, which takes less time here.
    driver = run(place, "run", file if way == "pool" else write_study(place, SHORT), "--quiet")
    assert driver.process.exitcode == 0, driver.err
    assert_epochs_are_kept(place, before)
    assert_rows_are_true(place)
    assert_is_the_same_study(place, short)
    assert place.rows().executions == ["interrupted", "complete"]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "database_url"), EACH, indirect=["database_url"])
def test_trials_that_ray_ends_for_want_of_memory_are_given_up_with_advice(way: str, place: Place) -> None:
    file = write_study(place, on_ray(SHORT, way).replace("num_trials: 6", "num_trials: 2"))
    none_left = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    driver = start_on_ray(place, file, "use_deadly", **none_left)
    assert driver.wait() == 1, driver.err
    assert f"all 2 trials of stage 'train' failed; the last one: its process died {SOON_GIVEN_UP} times" in driver.err
    assert "lower recipe.batch_size" in driver.err
    assert "Traceback" not in driver.err
    assert_rows_are_true(place, given_up=2)
    assert place.rows().study.state == "failed"
