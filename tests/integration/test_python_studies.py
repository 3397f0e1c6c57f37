"""Studies and models through `import vitsearch`."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitsearch
from orchestrator.settings import load_settings
from orchestrator.study.lock import hold_study
from tests.fakes import RecordingProgress, Told
from tests.tiny import FinishedStudy

SMALL = {
    "study": "small",
    "data": {"source": "digits", "image_size": 32, "max_images": 100, "max_test_images": 30},
    "stages": [
        {"stage": "screen", "space": {"name": "as-vit", "width": 8, "depths": [1, 1, 1, 1]}, "num_trials": 3}
        | {"batch_size": 4, "proxies": ["params", "flops"]},
        {"stage": "train", "num_trials": 2, "epochs": 3, "keep_checkpoints": 1, "candidates": {"best": 1, "spread": 1}},
    ],
}
"""Without a promote stage."""


def run_small(home: Path, **arguments: Any) -> vitsearch.StudyRun:
    return vitsearch.run_study(SMALL, home=home, tracking=False, **arguments)


@pytest.fixture(scope="module")
def small_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the small study. Tests only read it."""
    home = tmp_path_factory.mktemp("small") / "home"
    assert run_small(home).state == "complete"
    return home


def results(run: vitsearch.StudyRun) -> list[dict[str, Any]]:
    """What the seed of a study determines of its trials."""
    timed = {"wall_time_s", "throughput_images_per_s"}
    found = [asdict(trial) for trial in run.trials()]
    for trial in found:
        del trial["started_at"], trial["ended_at"]
        trial["metrics"] = {name: value for name, value in trial["metrics"].items() if name not in timed}
    return found


# --- results ---


def test_a_complete_study_is_returned_with_typed_results(tiny: FinishedStudy) -> None:
    run = vitsearch.run_study(tiny.file, home=tiny.home, tracking=False)
    assert (run.name, run.state, run.reason) == ("tiny", "complete", None)
    assert run.folder == tiny.home / "artifacts" / "studies" / f"tiny-{tiny.rows.study.uid}"
    assert {name: type(result) for name, result in run.stages.items()} == {
        "screen": vitsearch.ScreenResult,
        "grow": vitsearch.GrowResult,
        "train": vitsearch.TrainResult,
        "stopping": vitsearch.StoppingResult,
        "averaging": vitsearch.AveragingResult,
        "correlate": vitsearch.CorrelateResult,
        "promote": vitsearch.PromoteResult,
    }
    assert run.spec == vitsearch.load_study(tiny.file)
    assert repr(run).startswith("StudyRun(name='tiny', state='complete', reason=None, folder=")
    assert len(repr(run)) < 300


def test_trials_are_records_by_stage_and_number(tiny: FinishedStudy) -> None:
    run = vitsearch.load_run("tiny", home=tiny.home)
    assert [(trial.stage, trial.number) for trial in run.trials()] == [
        (stage, trial.number) for stage, trials in tiny.rows.trials.items() for trial in trials
    ]
    trained = run.trials("train")
    assert [(trial.point, trial.metrics, trial.seed) for trial in trained] == [
        (trial.point, trial.metrics, trial.seed) for trial in tiny.rows.trials["train"]
    ]
    assert trained[0].topology == trained[0].point["topology"]
    assert all(str(trial.topology).startswith("as-vit:") for trial in run.trials("screen"))
    assert run.trials("stopping")[0].topology is None


def test_trials_are_a_table_with_a_column_for_each_dimension_and_metric(tiny: FinishedStudy) -> None:
    run = vitsearch.load_run("tiny", home=tiny.home)
    frame = run.trials_frame("train")
    assert len(frame) == 9
    assert list(frame.columns[:4]) == ["stage", "trial", "state", "topology"]
    assert frame["recipe.learning_rate"].dtype == frame["val_accuracy"].dtype == np.float64
    best = frame.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
    assert best["trial"] == run.stages["train"].best.trial  # type: ignore[attr-defined]
    assert str(frame["ended_at"].dt.tz) == "UTC"
    assert (frame["ended_at"] >= frame["started_at"]).all()
    assert frame.columns.is_unique
    assert len(run.trials_frame()) == len(run.trials())
    assert {"recipe.learning_rate", "length-distortion", "epochs_saved"} <= set(run.trials_frame().columns)
    assert list(run.trials_frame("promote").columns) == list(frame.columns[:8])


def test_a_stage_that_the_study_does_not_have_is_named(tiny: FinishedStudy) -> None:
    run = vitsearch.load_run("tiny", home=tiny.home)
    with pytest.raises(ValueError, match=r"a stage of study 'tiny' \(screen, .*got 'trian'\. Did you mean 'train'"):
        run.trials("trian")


# --- models ---


def test_the_champion_predicts_files_arrays_and_pillow_images(tiny: FinishedStudy, tmp_path: Path) -> None:
    champion = vitsearch.load_run("tiny", home=tiny.home).champion
    assert champion.folder == Path(tiny.champion["folder"])
    assert champion.configuration.topology == tiny.champion["configuration"]["topology"]
    assert champion.trial == tiny.champion["trial"]
    assert champion.metrics == {
        name: tiny.champion[name]
        for name in ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "parameters", "macs")
    }
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8))
    image.save(tmp_path / "new.png")
    predictor = champion.load(device="cpu")
    alike = predictor.predict([tmp_path / "new.png", np.asarray(image), image])
    assert len({one.top for one in alike}) == 1
    for model in ("tiny", champion.folder, str(champion.folder)):
        assert vitsearch.load_model(model, home=tiny.home, device="cpu").card == predictor.card


def test_a_model_that_does_not_exist_is_named(tiny: FinishedStudy, small_home: Path, tmp_path: Path) -> None:
    with pytest.raises(vitsearch.UnknownStudyError, match="Did you mean 'tiny'"):
        vitsearch.load_model("tinny", home=tiny.home)
    for folder in (tmp_path / "model", str(tmp_path / "model"), tmp_path):
        with pytest.raises(vitsearch.ModelError, match="must be a model's folder"):
            vitsearch.load_model(folder, home=tiny.home)
    with pytest.raises(vitsearch.NoChampionError, match="'small' has no champion"):
        vitsearch.load_model("small", home=small_home)


# --- running ---


def test_nothing_is_printed_unless_it_is_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_small(tmp_path / "home").state == "complete"
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr_or_to_an_object(
    small_home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = RecordingProgress()
    run = run_small(tmp_path / "first", progress=progress)
    assert [one.value for one in progress.of("epoch")] == [(trial, epoch) for trial in (0, 1) for epoch in (1, 2, 3)]
    assert capfd.readouterr() == ("", "")
    assert results(run_small(tmp_path / "second", progress=True)) == results(run)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "train: complete: 2 trials" in captured.err
    assert results(run) == results(vitsearch.load_run("small", home=small_home))


def test_ctrl_c_leaves_a_study_that_the_same_call_resumes(small_home: Path, tmp_path: Path) -> None:
    def press(told: Told) -> None:
        if told.what == "epoch" and told.value == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path, progress=RecordingProgress(press))
    left = vitsearch.load_run("small", home=tmp_path)
    assert (left.state, left.reason) == ("interrupted", "KeyboardInterrupt")
    assert list(left.stages) == ["screen"]
    assert [trial.state for trial in left.trials("train")] == ["complete", "waiting"]
    assert list((left.folder / "train" / "trial-0001").glob("epoch-*")), "it must have a checkpoint"
    resumed = run_small(tmp_path)
    assert resumed.state == "complete"
    assert results(resumed) == results(vitsearch.load_run("small", home=small_home))


def test_a_study_whose_process_was_killed_is_interrupted_and_its_trials_wait(small_home: Path, tmp_path: Path) -> None:
    shutil.copytree(small_home, tmp_path / "home")
    with closing(sqlite3.connect(tmp_path / "home" / "vitsearch.db")) as database, database:
        database.execute("UPDATE studies SET state = 'running'")
        database.execute("UPDATE stages SET state = 'running' WHERE name = 'train'")
        database.execute("UPDATE trials SET state = 'running' WHERE number = 1 AND stage_id = 2")
    run = vitsearch.load_run("small", home=tmp_path / "home")
    assert run.state == "interrupted"
    assert "died" in str(run.reason)
    assert list(run.stages) == ["screen"]
    assert [trial.state for trial in run.trials("train")] == ["complete", "waiting"]


def test_a_caller_can_stop_a_study(tmp_path: Path) -> None:
    progress = RecordingProgress()
    run = run_small(tmp_path, progress=progress, should_stop=lambda: len(progress.of("epoch")) >= 2)
    assert run.state == "interrupted"
    assert run.reason
    assert len(progress.of("epoch")) == 2
    with pytest.raises(vitsearch.NoChampionError, match="it is interrupted"):
        _ = run.champion


def test_a_silent_training_ends_the_process_only_if_the_study_says_so(small_home: Path, tmp_path: Path) -> None:
    assert vitsearch.load_run("small", home=small_home).spec.resources.silent_minutes is None
    study = {**SMALL, "resources": {"silent_minutes": 9}}
    run = vitsearch.run_study(study, home=tmp_path, tracking=False, should_stop=lambda: True)
    assert run.spec.resources.silent_minutes == 9


def test_a_changed_study_is_refused_and_what_changed_is_named(small_home: Path) -> None:
    with pytest.raises(vitsearch.SpecChangedError, match="seed: 0 -> 5"):
        vitsearch.run_study({**SMALL, "seed": 5}, home=small_home, tracking=False)


def test_a_study_that_another_process_runs_is_refused(tmp_path: Path) -> None:
    with hold_study("small", load_settings(home=tmp_path)), pytest.raises(vitsearch.StudyBusyError):
        run_small(tmp_path)


def test_a_missing_study_is_named_with_the_nearest(small_home: Path) -> None:
    with pytest.raises(vitsearch.UnknownStudyError, match="Did you mean 'small'"):
        vitsearch.load_run("smal", home=small_home)


def test_a_study_of_version_0_1_0_is_read(tmp_path: Path) -> None:
    home = Path(__file__).resolve().parents[1] / "golden" / "homes" / "0.1.0" / "home"
    shutil.copytree(home, tmp_path / "home")
    run = vitsearch.load_run("finished", home=tmp_path / "home")
    assert run.state == "complete"
    assert len(run.stages["train"].trials) == len(run.trials("train")) > 0  # type: ignore[attr-defined]
    assert run.champion.load(device="cpu").predict(np.zeros((8, 8), np.uint8))
