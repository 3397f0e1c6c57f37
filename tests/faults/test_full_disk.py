"""On a full disk, the study stops and names what could not be written; with space again, it continues."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.driver import Driver, run
from tests.faults.killing import assert_epochs_are_kept, write_study
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true, finished_epochs
from tests.tiny import FinishedStudy


class SmallDisk:
    """A file system of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_it_stopped(driver: Driver, place: Place, reason: str) -> None:
    assert driver.process.exitcode == 1
    assert "must be written" in driver.err
    assert reason in driver.err
    assert "Resume with: vitsearch run" in driver.err
    assert "Traceback" not in driver.err
    assert_rows_are_true(place)
    rows = place.rows()
    assert (rows.study.state, rows.stages["train"].state) == ("interrupted", "interrupted")
    assert reason in (rows.study.reason or "")
    assert {trial.state for trial in rows.trials["train"]} <= {"complete", "waiting"}
    assert rows.executions == ["interrupted"]


def assert_it_goes_on(tiny: FinishedStudy, place: Place) -> None:
    before = finished_epochs(place)
    assert before
    driver = run(place, "run", write_study(place), "--quiet")
    assert driver.process.exitcode == 0, driver.err
    assert_epochs_are_kept(place, before)
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)


def test_a_checkpoint_that_the_system_refuses_stops_the_study_and_leaves_the_one_before(
    tiny: FinishedStudy, place: Place
) -> None:
    trouble = "tests.faults.troubles:checkpoints_do_not_fit"
    driver = run(place, "run", write_study(place), "--quiet", prepare=trouble)
    assert_it_stopped(driver, place, "File too large")
    found = sorted(path.name for path in next(place.home.rglob("trial-0000")).iterdir())
    assert found == ["attempt", "epoch-0001", "epoch-0002"]  # neither a third, nor a part of one
    assert_it_goes_on(tiny, place)


@pytest.mark.slow
def test_a_study_whose_checkpoints_fill_the_disk_goes_on_when_there_is_room(
    tiny: FinishedStudy, place: Place, disk: SmallDisk
) -> None:
    place = replace(place, artifact_root=disk.folder)
    driver = run(place, "run", write_study(place), "--quiet")
    assert_it_stopped(driver, place, "No space left on device")
    assert not list(disk.folder.rglob(".part-*"))
    disk.resize("100m")
    assert_it_goes_on(tiny, place)


@pytest.mark.slow
def test_a_study_whose_database_fills_the_disk_goes_on_when_there_is_room(
    tiny: FinishedStudy, tmp_path: Path, disk: SmallDisk
) -> None:
    disk.resize("400k")
    place = Place(tmp_path / "home", f"sqlite:///{disk.folder}/vitsearch.db")
    driver = run(place, "run", write_study(place), "--quiet")
    assert driver.process.exitcode == 1
    assert "database or disk is full" in driver.err
    assert "run the same command again" in driver.err
    assert "Traceback" not in driver.err
    disk.resize("100m")
    driver = run(place, "run", write_study(place), "--quiet")
    assert driver.process.exitcode == 0, driver.err
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)
