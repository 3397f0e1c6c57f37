"""A study that searches averages together with the epoch at which the training could have ended."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.spec.study_file import load_spec
from orchestrator.stages.averaging import AVERAGING, AveragingStage
from orchestrator.study.report_sections import average_name
from search_spaces.recipes import describe_plugin
from tests.fakes import RecordingProgress
from tests.tiny import Rows, read_rows, run_here
from tests.unit.training import TOPOLOGY
from trainers.champion import load_model

STUDY = f"""\
study: stops
data: {{source: digits, max_images: 120, max_test_images: 60}}
stages:
  - stage: train
    topologies: ["{TOPOLOGY}"]
    num_trials: 2
    epochs: 4
    keep_checkpoints: 1
    recipe:
      batch_size: 32
      learning_rate: [0.002, 0.004]
      schedule: constant
      ema: {{rates: [0.5, 0.9]}}
  - stage: stopping
    num_trials: 1
    criteria: [{{name: patience, epochs: 1, min_delta: 5.0}}]
  - stage: averaging
    sampler: random
    num_trials: 12
    stop_at: [4, 3, stopping]
    max_accuracy_lost: 0.9
    methods:
      - last
      - {{name: lawa, window: 2}}
      - {{name: trained-ema, rate: [0.5, 0.9]}}
      - {{name: uniform-soup, window: 2}}
  - stage: promote
  - {{stage: promote, name: again, seeds: 1, refit: true}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    (folder / "study.yaml").write_text(STUDY)
    assert run_here(folder / "study.yaml", folder / "home", progress=RecordingProgress()).state == "complete"
    return folder


@pytest.fixture(scope="module")
def rows(home: Path) -> Rows:
    return read_rows(home / "home", "stops")


@pytest.fixture(scope="module")
def stage(home: Path) -> AveragingStage:
    stage = load_spec(home / "study.yaml").stages[2]
    assert isinstance(stage, AveragingStage)
    return stage


def test_the_best_trial_keeps_the_checkpoints_that_the_averages_need(rows: Rows) -> None:
    best = rows.stages["train"].result["best"]["trial"]
    kept = [[record.epoch for record in records] for records in rows.checkpoints["train"]]
    assert kept[best] == [1, 2, 3, 4]
    assert kept[1 - best] == [4]


def test_every_average_says_which_epochs_it_saves(rows: Rows, stage: AveragingStage) -> None:
    saved = {4: 0.0, 3: 0.25, "stopping": 0.5}  # patience ends after epoch 2
    trials = rows.trials["averaging"]
    assert {trial.point["averaging.stop_at"] for trial in trials} == set(saved)
    for trial in trials:
        assert trial.metrics["epochs_saved"] == saved[trial.point["averaging.stop_at"]]
        assert trial.metrics["forward_passes"] == 1
    mixed = [trial for trial in trials if stage.decode(trial.point).name == "uniform-soup"]
    assert {trial.point["averaging.stop_at"] for trial in mixed} <= {4}


def test_the_average_that_saves_most_within_the_limit_is_chosen(rows: Rows) -> None:
    result = rows.stages["averaging"].result
    assert (result["stop_at"], result["epochs_saved"]) == (2, 0.5)
    assert result["forward_passes"] == len(rows.trials["averaging"])
    early = [one for one in rows.trials["averaging"] if one.metrics["epochs_saved"] == 0.5]
    assert result["val_accuracy"] == max(one.metrics["val_accuracy"] for one in early)


def test_the_drawing_of_the_report_names_the_epoch_of_each_average(rows: Rows, stage: AveragingStage) -> None:
    ends = {4: "", 3: " at epoch 3", "stopping": " at epoch 2"}
    for trial in rows.trials["averaging"]:
        expected = describe_plugin(stage.decode(trial.point)) + ends[trial.point["averaging.stop_at"]]
        assert average_name(stage, trial, epochs=4) == expected


def test_the_line_of_the_stage_tells_what_is_saved(rows: Rows) -> None:
    result = AVERAGING.result.model_validate(rows.stages["averaging"].result)
    assert AVERAGING.line(result).endswith(", 50 % of the epochs saved by ending after epoch 2")


def test_the_champion_has_the_average_at_that_epoch_and_its_configuration_says_so(home: Path, rows: Rows) -> None:
    result = rows.stages["promote"].result
    assert result["configuration"]["stop_at"] == 2
    assert result["val_accuracy"] == rows.stages["averaging"].result["val_accuracy"]
    (folder,) = (home / "home").rglob("promote/champion")
    assert load_model(folder).card.configuration.stop_at == 2


def test_a_new_training_is_averaged_at_that_epoch_and_one_on_all_images_ends_there(rows: Rows) -> None:
    retrained, refitted = rows.curves["again"]
    assert (len(retrained), len(refitted)) == (4, 2)
    result = rows.stages["again"].result
    assert result["configuration"]["stop_at"] == 2
    assert result["configuration"]["averaging"] == rows.stages["averaging"].result["averaging"]


def test_a_moving_average_is_that_of_its_rate(rows: Rows, stage: AveragingStage) -> None:
    best = rows.stages["train"].result["best"]["trial"]
    newest = rows.checkpoints["train"][best][-1].path
    fast, slow = (load_file(newest / f"ema-{rate}.safetensors") for rate in (0.5, 0.9))
    assert not all(torch.equal(fast[name], slow[name]) for name in fast)
    rates = {
        stage.decode(trial.point).settings["rate"]
        for trial in rows.trials["averaging"]
        if stage.decode(trial.point).name == "trained-ema"
    }
    assert rates == {0.5, 0.9}


def test_epochs_whose_checkpoints_are_gone_are_named(tmp_path: Path) -> None:
    file, home = tmp_path / "study.yaml", tmp_path / "home"
    trained = STUDY.partition("  - stage: stopping")[0].replace("num_trials: 2", "num_trials: 1")
    trained = trained.replace("[0.002, 0.004]", "0.002")
    file.write_text(trained)
    assert run_here(file, home).state == "complete"
    file.write_text(f"{trained}  - {{stage: averaging, num_trials: 4, stop_at: [4, 1, 2], methods: [last]}}\n")
    progress = RecordingProgress()
    assert run_here(file, home, progress=progress).state == "complete"
    notes = [told.value for told in progress.of("note")]
    # Besides the newest checkpoint, that of the best epoch is kept.
    assert any(re.search("leaves out the epochs [12](, 2)? of `stop_at`", note) for note in notes), notes
