"""Unusable data is refused before anything is written; a failing trial does not affect others."""

import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from orchestrator.spec.study_file import load_spec
from tests.tiny import TINY, CommandLine, read_rows
from trainers.data.images import load_images
from trainers.data.sources import list_source
from trainers.data.splits import split_indices
from trainers.training import loop

SCREEN = TINY.partition("  - stage: train")[0].partition("  - stage: grow")[0]
TRAIN = """\
  - stage: train
    candidates: {best: 1, spread: 1}
    sampler: random
    num_trials: 4
    epochs: 2
    recipe: {batch_size: 32}
  - stage: promote
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 12 small images each."""
    folder = tmp_path / "photos"
    pixels = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            image = Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(folder / name / f"{number:02d}.png")
    return folder


def study(tmp_path: Path, source: str | Path, *, stages: str = TRAIN) -> Path:
    """A study file with the data on its line 3."""
    data = f"data: {{source: {source}, image_size: 32, max_images: 120, max_test_images: 60}}"
    file = tmp_path / "study.yaml"
    file.write_text("\n".join([*SCREEN.splitlines()[:2], data, *SCREEN.splitlines()[3:]]) + f"\n{stages}")
    return file


def refused(command_line: CommandLine, file: Path) -> str:
    """The one message of a run that exits with 2 and writes nothing."""
    done = command_line("run", file)
    assert done.status == 2
    assert done.out == ""
    assert not command_line.home.exists()
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == 1
    return lines[0]


# --- data ---


def test_a_missing_folder_is_named_with_its_line(command_line: CommandLine, tmp_path: Path) -> None:
    message = refused(command_line, study(tmp_path, tmp_path / "nowhere"))
    assert "study.yaml:3: data.source" in message
    assert "nowhere" in message


def test_an_empty_folder_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "one sub-folder per class" in refused(command_line, study(tmp_path, tmp_path / "empty"))


def test_folders_without_images_are_refused(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bare" / "cats").mkdir(parents=True)
    (tmp_path / "bare" / "dogs").mkdir()
    assert "must contain images" in refused(command_line, study(tmp_path, tmp_path / "bare"))


def test_one_class_is_refused(command_line: CommandLine, tmp_path: Path, photos: Path) -> None:
    shutil.rmtree(photos / "dogs")
    message = refused(command_line, study(tmp_path, photos))
    assert "at least 2 classes" in message
    assert "cats" in message


def test_a_file_that_is_no_image_is_named(command_line: CommandLine, tmp_path: Path, photos: Path) -> None:
    (photos / "cats" / "05.png").write_bytes(b"no image at all")
    assert str(photos / "cats" / "05.png") in refused(command_line, study(tmp_path, photos))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_an_image_that_ends_in_the_middle_is_named(
    part: str, command_line: CommandLine, tmp_path: Path, photos: Path
) -> None:
    """Its header is whole, so only decoding finds it; the test part too is decoded before anything is written."""
    file = study(tmp_path, photos)
    config = load_spec(file).data
    listing = list_source(config).train
    parts = dict(
        zip(("train", "validation", "test"), split_indices(listing.labels, config, own_test=False), strict=True)
    )
    (item,) = listing.items([int(parts[part][0])])
    torn = Path(item.name)
    torn.write_bytes(torn.read_bytes()[:1500])
    assert str(torn) in refused(command_line, file)


def test_images_of_different_sizes_are_named(command_line: CommandLine, tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (48, 48)).save(photos / "dogs" / "07.png")
    message = refused(command_line, study(tmp_path, photos))
    assert "48 x 48" in message
    assert "resize: crop" in message


def test_data_from_the_command_line_are_checked_too(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("run", study(tmp_path, "digits"), "--data", "nowhere")
    assert done.status == 2
    assert "(an override of the file)" in done.err
    assert not command_line.home.exists()


def test_a_home_that_is_no_folder_is_named(command_line: CommandLine, tmp_path: Path) -> None:
    file = study(tmp_path, "digits")
    done = command_line("run", file, home=file)
    assert done.status == 2
    assert done.err.startswith("vitsearch: VITSEARCH_HOME must be a writable folder")
    assert len(done.err.splitlines()) == 1


def test_images_in_folders_become_a_champion(command_line: CommandLine, tmp_path: Path, photos: Path) -> None:
    done = command_line("run", study(tmp_path, photos), "--quiet", "--format", "json")
    assert done.status == 0, done.err
    assert done.json()["champion"]["test_accuracy"] >= 0
    image = photos / "cats" / "00.png"
    (row,) = command_line("predict", "tiny", image, "--format", "json").json()
    assert row["label"] in {"cats", "dogs"}


# --- trials that go wrong ---


def test_images_that_change_before_a_study_goes_on_are_refused(
    command_line: CommandLine, tmp_path: Path, photos: Path
) -> None:
    diverging = "{batch_size: 8, gradient_clip: null, learning_rate: 1.0e+30}"
    file = study(tmp_path, photos, stages=TRAIN.replace("{batch_size: 32}", diverging))
    assert command_line("run", file).status == 1
    for image in (photos / "cats").iterdir():
        Image.new("RGB", (32, 32), (200, 30, 30)).save(image)
    load_images.cache_clear()
    done = command_line("run", file)
    assert done.status == 2
    assert "have changed since" in done.err
    assert str(photos) in done.err


def test_status_of_a_killed_study_does_not_say_running(command_line: CommandLine, tmp_path: Path, photos: Path) -> None:
    assert command_line("run", study(tmp_path, photos)).status == 0
    with sqlite3.connect(command_line.home / "vitsearch.db") as database:  # the rows that a killed process leaves
        database.execute("UPDATE studies SET state = 'running'")
        database.execute("UPDATE stages SET state = 'running' WHERE name = 'promote'")
        database.execute("UPDATE trials SET state = 'running' WHERE id = (SELECT max(id) FROM trials)")
    told = command_line("status", "tiny", "--format", "json").json()
    assert told["state"] == "interrupted"
    assert "run the file again" in told["reason"]
    assert told["stages"][-1]["state"] == "interrupted"
    assert "running" not in told["stages"][-2]["trials"]
    assert command_line("list", "--format", "json").json()[0]["state"] == "interrupted"
    with FileLock(command_line.home / "locks" / "tiny.lock"):
        assert command_line("status", "tiny", "--format", "json").json()["state"] == "running"


class FailingStep:
    """Stands in for the optimizer step, and raises at its `fail_at`-th call."""

    def __init__(self, error: Exception, *, fail_at: Iterable[int]) -> None:
        self._learn = loop.learn
        self._error = error
        self._fail_at = set(fail_at)
        self._calls = 0

    def __call__(self, *arguments: object, **options: object) -> object:
        self._calls += 1
        if self._calls in self._fail_at:
            raise self._error
        return self._learn(*arguments, **options)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "out-of-memory", "batch_size"),
        (MemoryError("no memory"), "out-of-memory", "no memory"),
        (RuntimeError("a driver is broken"), "exception", "RuntimeError: a driver is broken"),
    ],
)
def test_a_trial_that_raises_fails_with_its_reason_and_the_study_goes_on(
    error: Exception,
    kind: str,
    reason: str,
    command_line: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 90 images in batches of 32: the third step of trial 0. A step that lacks memory is tried once more, in halves.
    monkeypatch.setattr(loop, "learn", FailingStep(error, fail_at=[3, 4] if kind == "out-of-memory" else [3]))
    stages = TRAIN.replace("{batch_size: 32}", "{batch_size: 32, learning_rate: [0.001, 0.002, 0.003]}")
    done = command_line("run", study(tmp_path, "digits", stages=stages))
    assert done.status == 0, done.err
    rows = read_rows(command_line.home)
    first, *others = rows.trials["train"]
    assert (first.state, first.error) == ("failed", kind)
    assert reason in first.reason
    assert f"trial 0 failed: {first.reason.splitlines()[0]}" in done.err
    assert {trial.state for trial in others} == {"complete"}
    assert rows.stages["train"].result["num_failed"] == 1
    assert rows.study.state == "complete"
    assert rows.stages["promote"].result["trial"] != 0


def test_a_trial_that_diverges_fails_as_not_finite_and_the_study_goes_on(
    command_line: CommandLine, tmp_path: Path
) -> None:
    recipe = "{batch_size: 32, gradient_clip: null, learning_rate: [0.001, 1.0e+30]}"
    file = study(tmp_path, "digits", stages=TRAIN.replace("{batch_size: 32}", recipe))
    assert command_line("run", file, "--quiet").status == 0
    trials = read_rows(command_line.home).trials["train"]
    states = {trial.point["recipe.learning_rate"]: (trial.state, trial.error) for trial in trials}
    assert states == {0.001: ("complete", None), 1e30: ("failed", "not-finite")}
    assert all("Lower the learning rate" in trial.reason for trial in trials if trial.state == "failed")


def test_a_stage_whose_trials_all_fail_fails_the_study_with_the_reason(
    command_line: CommandLine, tmp_path: Path
) -> None:
    recipe = "{batch_size: 32, gradient_clip: null, learning_rate: 1.0e+30}"
    file = study(tmp_path, "digits", stages=TRAIN.replace("{batch_size: 32}", recipe))
    for _ in range(2):  # a second run does not begin the failed trials again
        done = command_line("run", file)
        assert done.status == 1
        last = done.err.splitlines()[-1]
        assert "all 2 trials of stage 'train' failed" in last
        assert "Lower the learning rate" in last
        rows = read_rows(command_line.home)
        assert rows.study.state == rows.stages["train"].state == "failed"
        assert rows.stages["promote"].state == "waiting"
        assert len(rows.trials["train"]) == 2
    assert "failed" in command_line("status", "tiny").out
    assert command_line("best", "tiny").status == 1
