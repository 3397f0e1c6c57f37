"""If the newest checkpoint of a killed training is damaged, the one before is used and this is reported."""

import signal
from pathlib import Path

import pytest

from tests.faults.driver import Kill, run
from tests.faults.killing import write_study
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true
from tests.tiny import FinishedStudy

REPORTED = Kill("orchestrator.store.repository:Store.add_report", "after", "train", 3)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_byte(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def tear_the_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes()[:50])


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_is_used_and_it_is_said(tiny: FinishedStudy, place: Place) -> None:
    file = write_study(place)
    damages = {0: truncate, 1: flip_a_byte, 2: tear_the_manifest}
    for number, damage in damages.items():
        # A training that goes on reports what it had reported, so each kill comes within the next trial.
        nth = 3 if number == 0 else 4 + 3
        driver = run(place, "run", file, "--quiet", kills=[Kill(REPORTED.where, "after", "train", nth)])
        assert driver.process.exitcode == -signal.SIGKILL, driver.err
        newest = max(next(place.home.rglob(f"trial-{number:04d}")).glob("epoch-*"))
        assert newest.name == "epoch-0003"
        damage(newest)
    driver = run(place, "run", file)
    assert driver.process.exitcode == 0, driver.err
    assert "trial 2 continued from an earlier checkpoint: epoch-0003" in driver.err
    trials = place.rows().trials["train"]
    told = [trial.details.get("damaged_checkpoints") for trial in trials]
    assert [bool(one) for one in told] == [True, True, True, *[False] * 6]
    assert "model.safetensors must have the sha256" in told[0][0]
    assert "optimizer.safetensors must have the sha256" in told[1][0]
    assert "manifest.json" in told[2][0]
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)


@pytest.mark.slow
def test_a_training_without_any_whole_checkpoint_begins_anew(tiny: FinishedStudy, place: Place) -> None:
    file = write_study(place)
    assert run(place, "run", file, "--quiet", kills=[REPORTED]).process.exitcode == -signal.SIGKILL
    for folder in next(place.home.rglob("trial-0000")).glob("epoch-*"):
        tear_the_manifest(folder)
    driver = run(place, "run", file, "--quiet")
    assert driver.process.exitcode == 0, driver.err
    assert len(place.rows().trials["train"][0].details["damaged_checkpoints"]) == 3
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)
