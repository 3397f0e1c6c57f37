"""A trial that hangs, kills its process or exhausts memory fails with its reason, and the study continues."""

import signal
from typing import Any

import pytest

from orchestrator.store.repository import MAX_LOST_ATTEMPTS
from tests.faults.driver import run
from tests.faults.killing import write_study
from tests.faults.troubles import LAST_TRIAL
from tests.places import Place, assert_rows_are_true
from tests.tiny import FinishedStudy

LAST = int(LAST_TRIAL.removeprefix("trial-"))


def trained(rows: Any) -> list[Any]:
    """What the seed determines of the trained trials."""
    wanted = {"number", "state", "point", "seed"}
    return [
        trial.model_dump(include=wanted) | {"val_accuracy": trial.metrics.get("val_accuracy")}
        for trial in rows.trials["train"]
    ]


def assert_only_the_last_trial_failed(place: Place, tiny: FinishedStudy, reason: str, *, given_up: int = 0) -> Any:
    assert_rows_are_true(place, given_up=given_up)
    rows = place.rows()
    assert rows.study.state == "complete"
    assert trained(rows)[:LAST] == trained(tiny.rows)[:LAST]
    failed = rows.trials["train"][LAST]
    assert failed.state == "failed"
    assert reason in (failed.reason or "")
    return failed


@pytest.mark.slow
def test_a_trial_that_hangs_is_failed_and_the_same_command_goes_on(tiny: FinishedStudy, place: Place) -> None:
    file = write_study(place, **{"seed: 7": "seed: 7\nresources: {silent_minutes: 0.3}"})
    driver = run(place, "run", file, "--quiet", prepare="tests.faults.troubles:last_trial_hangs")
    assert driver.process.exitcode == 1, driver.err
    assert "hangs: it gave no sign of life for 0.3 minutes" in driver.err
    assert_rows_are_true(place)
    assert (place.rows().study.state, "hangs" in (place.rows().study.reason or "")) == ("interrupted", True)
    driver = run(place, "run", file, "--quiet")
    assert driver.process.exitcode == 0, driver.err
    failed = assert_only_the_last_trial_failed(place, tiny, "no sign of life")
    assert failed.error == "silent"
    assert place.rows().executions == ["interrupted", "complete"]


@pytest.mark.slow
def test_a_trial_that_the_system_kills_again_and_again_is_failed(tiny: FinishedStudy, place: Place) -> None:
    file = write_study(place)
    for _ in range(MAX_LOST_ATTEMPTS):
        driver = run(place, "run", file, "--quiet", prepare="tests.faults.troubles:last_trial_is_killed")
        assert driver.process.exitcode == -signal.SIGKILL, driver.err
    driver = run(place, "run", file, "--quiet", prepare="tests.faults.troubles:last_trial_is_killed")
    assert driver.process.exitcode == 0, driver.err
    assert_only_the_last_trial_failed(place, tiny, f"died {MAX_LOST_ATTEMPTS} times", given_up=1)


MEMORY = """\
study: tiny
seed: 7
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:FIRST", "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"]
    num_trials: 2
    epochs: 2
"""
SMALL = "4,2,3,1|2,1,2,1|2,1,4,1|2,1,6,1|32,8"
HUGE = "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,20|32,128"


def test_a_trial_without_memory_is_failed_with_advice_and_the_next_one_is_as_ever(place: Place) -> None:
    place.home.parent.mkdir(exist_ok=True)
    undisturbed = Place(place.home.with_name("undisturbed"), f"sqlite:///{place.home.parent}/undisturbed/x.db")
    found = []
    for one, first in ((undisturbed, SMALL), (place, HUGE)):
        file = place.home.parent / "memory.yaml"
        file.write_text(MEMORY.replace("FIRST", first), encoding="utf-8")
        driver = run(one, "run", file, "--quiet", prepare="tests.faults.troubles:little_memory")
        assert driver.process.exitcode == 0, driver.err
        assert_rows_are_true(one)
        found.append(one.rows())
    failed = found[1].trials["train"][0]
    assert (failed.state, failed.error) == ("failed", "out-of-memory")
    assert "Lower recipe.batch_size" in (failed.reason or "")
    assert [rows.trials["train"][1].state for rows in found] == ["complete", "complete"]
    assert trained(found[0])[1] == trained(found[1])[1]
