"""If a process with a pack dies or hangs, its trials run alone next, and only the faulty one can fail."""

import signal
from pathlib import Path

import pytest

from tests.faults.driver import Kill, run
from tests.faults.troubles import HANGING_TRIAL
from tests.packs import ALONE, PACKED, ROUNDING, pack_sizes, write_packs
from tests.places import Place, assert_rows_are_true, finished_epochs
from tests.tiny import Rows, differences, read_rows, run_here

STORE = "orchestrator.store.repository:Store"
HANGING = int(HANGING_TRIAL.removeprefix("trial-"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("alone")
    assert run_here(write_packs(folder, ALONE), folder / "home").state == "complete"
    return read_rows(folder / "home", "packs")


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """On SQLite: the database has no part in it."""
    return Place(tmp_path / "home", f"sqlite:///{tmp_path}/vitsearch.db")


def attempts(place: Place) -> dict[int, list[str]]:
    """States of each trial's attempts, oldest first."""
    found: dict[int, list[str]] = {}
    for number, state in place.query(
        "SELECT trials.number, attempts.state FROM attempts JOIN trials ON trials.id = trial_id ORDER BY attempts.id"
    ):
        found.setdefault(number, []).append(state)
    return found


def test_a_driver_killed_with_a_pack_ends_the_same_study(alone: Rows, here: Place) -> None:
    file = write_packs(here.home.parent, PACKED)
    for kill in (Kill(f"{STORE}.add_report", "after", "train", 6), Kill(f"{STORE}.end_trial", "before", "train", 2)):
        before = finished_epochs(here)
        driver = run(here, "run", file, "--quiet", kills=[kill])
        assert driver.process.exitcode == -signal.SIGKILL, driver.err
        kept = finished_epochs(here)
        assert {key: kept[key] for key in before} == before
    driver = run(here, "run", file, "--quiet")
    assert driver.process.exitcode == 0, driver.err
    assert_rows_are_true(here)
    rows = here.rows("packs")
    assert differences(rows, alone, tolerance=ROUNDING) == []
    lost = {number for number, states in attempts(here).items() if "lost" in states}
    assert len(lost) >= 4
    assert [pack_sizes(rows)[number] for number in sorted(lost)] == [1] * len(lost)
    assert max(pack_sizes(rows)) > 1


@pytest.mark.slow
def test_a_pack_that_hangs_is_trained_apart_and_one_trial_fails(alone: Rows, here: Place) -> None:
    file = write_packs(
        here.home.parent, PACKED.replace("trials_per_pack: 4", "trials_per_pack: 4, silent_minutes: 0.3")
    )
    trouble = {"prepare": "tests.faults.troubles:a_packed_trial_hangs"}
    driver = run(here, "run", file, "--quiet", **trouble)
    assert driver.process.exitcode == 1, driver.err
    assert "trained as a pack, hangs: it gave no sign of life for 0.3 minutes" in driver.err
    assert_rows_are_true(here)
    packed = [number for number, states in attempts(here).items() if states == ["lost"]]
    assert HANGING in packed
    assert 1 < len(packed) <= 4
    driver = run(here, "run", file, "--quiet", **trouble)
    assert driver.process.exitcode == 1, driver.err
    assert f"trial {HANGING} of stage 'train' hangs: it gave no sign of life" in driver.err
    driver = run(here, "run", file, "--quiet", **trouble)
    assert driver.process.exitcode == 0, driver.err
    assert_rows_are_true(here)
    assert_only_the_one_to_blame_failed(here.rows("packs"), alone, "silent")
    assert {attempts(here)[number][-1] for number in packed} == {"complete", "stopped", "failed"}


@pytest.mark.slow
def test_a_trial_that_kills_its_pack_again_and_again_fails_alone(alone: Rows, here: Place) -> None:
    file = write_packs(here.home.parent, PACKED)
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        driver = run(here, "run", file, "--quiet", prepare="tests.faults.troubles:a_packed_trial_is_killed")
        status = driver.process.exitcode
    assert status == 0, driver.err
    assert_rows_are_true(here, given_up=1)
    assert_only_the_one_to_blame_failed(here.rows("packs"), alone, "exception")


def assert_only_the_one_to_blame_failed(rows: Rows, alone: Rows, error: str) -> None:
    assert rows.study.state == "complete"
    trials, expected = rows.trials["train"], alone.trials["train"]
    assert [trial.point for trial in trials] == [trial.point for trial in expected]
    failed = trials[HANGING]
    assert (failed.state, failed.error) == ("failed", error)
    for trial, other in zip(trials, expected, strict=True):
        if trial.number != HANGING:
            assert trial.state == other.state
            assert trial.metrics["val_loss"] == pytest.approx(other.metrics["val_loss"], rel=ROUNDING)
