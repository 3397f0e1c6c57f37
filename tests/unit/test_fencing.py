"""If a training has several attempts, only the newest one writes."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.training import Recorder, configuration
from trainers.config import EpochReport, Fence, TaskOutcome, TrainTask
from trainers.training import checkpoints
from trainers.training.checkpoints import (
    CheckpointWriteError,
    epoch_folders,
    epoch_of,
    has_optimizer,
    load_newest,
    load_weights,
)
from trainers.training.fencing import SupersededError, check, claim
from trainers.worker import run_task

CONFIGURATION = configuration()


def fence(folder: Path, token: int) -> Fence:
    return Fence(file=folder / "trial-0001" / "attempt", token=token)


def attempt(folder: Path, token: int, reporter: Recorder | None = None, *, keep: int = 3) -> TaskOutcome:
    one = fence(folder, token)
    task = TrainTask(configuration=CONFIGURATION, folder=one.file.parent, keep_checkpoints=keep, fence=one)
    return run_task(task, reporter or Recorder())


class Overtaken(Recorder):
    """After its first epoch, a newer attempt trains to the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.newer: TaskOutcome | None = None

    def report(self, report: EpochReport) -> None:
        super().report(report)
        self.newer = attempt(self._folder, 8)


def test_a_worker_that_is_superseded_leaves_the_files_of_the_newer_attempt_alone(tmp_path: Path) -> None:
    reporter = Overtaken(tmp_path)
    outcome = attempt(tmp_path, 7, reporter)
    assert (outcome.state, outcome.error) == ("interrupted", "storage")
    assert "only the newest attempt may train in" in (outcome.reason or "")
    assert len(reporter.reports) == 1
    alone = attempt(tmp_path / "alone", 7)
    assert reporter.newer is not None
    assert (reporter.newer.state, reporter.newer.metrics.keys()) == ("complete", alone.metrics.keys())
    assert [row.sha256 for row in reporter.newer.checkpoints] == [row.sha256 for row in alone.checkpoints]
    for row in reporter.newer.checkpoints:
        load_weights(row.path)


class OvertakenAtTheEnd(Recorder):
    """A newer attempt begins after the last report."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def report(self, report: EpochReport) -> None:
        super().report(report)
        if report.epoch == CONFIGURATION.epochs:
            claim(fence(self._folder, 8))


def test_a_worker_that_is_superseded_between_a_checkpoint_and_retention_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoints.write_folder

    def write_then_begin(target: Path, *arguments: Any, **named: Any) -> None:
        write(target, *arguments, **named)
        if target.name == "epoch-0003":
            claim(fence(tmp_path, 8))

    monkeypatch.setattr(checkpoints, "write_folder", write_then_begin)
    outcome = attempt(tmp_path, 7, keep=1)
    assert (outcome.state, outcome.error) == ("interrupted", "storage")
    left = epoch_folders(tmp_path / "trial-0001")
    assert [epoch_of(path) for path in left] == [1, 2, 3]
    assert all(has_optimizer(path) for path in left)


def test_a_worker_that_is_superseded_before_its_last_retention_removes_nothing(tmp_path: Path) -> None:
    assert attempt(tmp_path / "alone", 7, keep=1).state == "complete"
    alone = [epoch_of(path) for path in epoch_folders(tmp_path / "alone" / "trial-0001")]
    outcome = attempt(tmp_path, 7, OvertakenAtTheEnd(tmp_path), keep=1)
    assert (outcome.state, outcome.error) == ("interrupted", "storage")
    left = [epoch_of(path) for path in epoch_folders(tmp_path / "trial-0001")]
    assert left[-2:] == [CONFIGURATION.epochs - 1, CONFIGURATION.epochs]
    assert len(left) > len(alone)


def test_an_older_attempt_that_begins_late_reads_and_writes_nothing(tmp_path: Path) -> None:
    claim(fence(tmp_path, 8))
    assert attempt(tmp_path, 7).error == "storage"
    assert load_newest(tmp_path / "trial-0001", accepted=["any"]) is None
    with pytest.raises(SupersededError, match="gave this attempt up, or continues in another process"):
        check(fence(tmp_path, 7))


def test_the_same_attempt_may_begin_again_and_one_without_a_fence_always(tmp_path: Path) -> None:
    for token in (7, 7, 8):
        claim(fence(tmp_path, token))
    check(fence(tmp_path, 8))
    claim(None)
    check(None)
    assert [path.name for path in (tmp_path / "trial-0001").iterdir()] == ["attempt"]


def test_a_torn_token_counts_as_none(tmp_path: Path) -> None:
    claim(fence(tmp_path, 8))
    fence(tmp_path, 8).file.write_bytes(b"")
    claim(fence(tmp_path, 7))


def test_where_no_token_can_be_left_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "trial-0001").write_text("a file, and no folder")
    with pytest.raises(CheckpointWriteError, match="Free disk space or fix the problem"):
        claim(fence(tmp_path, 7))
