"""The best epoch of a training: its checkpoint is kept, and can become the model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.recipes import PluginChoice
from tests.unit.training import Recorder, configuration, digits, run
from trainers.champion import train_configuration
from trainers.config import EpochReport
from trainers.tasks.averaging import ValidationJudge, average_checkpoints
from trainers.training.best_epoch import best_checkpoint, best_report
from trainers.training.checkpoints import OPTIMIZER, CheckpointError, load_weights, prune, saved
from trainers.training.packed import train_packed

CPU = torch.device("cpu")
F1 = DecidingMetric.of(PluginChoice(name="macro-f1"))
LOSS = DecidingMetric.of(PluginChoice(name="loss"))
WORSENING = {"learning_rate": {"from": 3e-3, "to": 3.0, "shape": "step", "until": 0.4}, "schedule": "constant"}
"""A recipe whose first epochs are the best, since a far too high learning rate follows."""


def reports(rows: Sequence[tuple[float, float, float]]) -> list[EpochReport]:
    """Reports of accuracy, loss and macro F1."""
    return [
        EpochReport(
            epoch=epoch,
            train_loss=1.0,
            val_loss=loss,
            val_accuracy=accuracy,
            metrics={"val_macro_f1": f1},
            learning_rate=0.1,
            num_images=1,
            wall_time_s=1.0,
        )
        for epoch, (accuracy, loss, f1) in enumerate(rows, start=1)
    ]


def test_the_metric_decides_which_epoch_is_best() -> None:
    history = reports([(0.9, 0.5, 0.3), (0.8, 0.4, 0.6), (0.7, 0.9, 0.5)])
    assert best_report(history, ACCURACY).epoch == 1
    assert best_report(history, LOSS).epoch == 2
    assert best_report(history, F1).epoch == 2


def test_of_equally_good_epochs_the_lower_loss_and_then_the_later_one_is_best() -> None:
    assert best_report(reports([(0.9, 0.5, 0), (0.9, 0.4, 0), (0.9, 0.4, 0), (0.8, 0.1, 0)]), ACCURACY).epoch == 3


def epochs(folder: Path) -> list[int]:
    return [record.epoch for record in saved(folder)]


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = run(configuration(epochs=8, recipe=WORSENING), tmp_path, recorder, keep=2)
    best = best_report(recorder.reports, ACCURACY)
    assert best.epoch < 7
    assert epochs(tmp_path) == [best.epoch, 7, 8]
    assert [record.epoch for record in outcome.checkpoints] == [best.epoch, 7, 8]
    assert not (tmp_path / f"epoch-{best.epoch:04d}" / OPTIMIZER).exists()
    assert outcome.metrics["best_epoch"] == best.epoch
    assert outcome.metrics["val_accuracy_best"] == best.val_accuracy
    assert best_checkpoint([record.path for record in outcome.checkpoints], ACCURACY).name == f"epoch-{best.epoch:04d}"


def test_an_earlier_best_checkpoint_goes_when_a_later_epoch_is_better(tmp_path: Path) -> None:
    for epoch in range(1, 5):
        (tmp_path / f"epoch-{epoch:04d}").mkdir()
    prune(tmp_path, keep=2, best=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0003", "epoch-0004"]
    prune(tmp_path, keep=2, best=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0003", "epoch-0004"]


def test_averaging_best_gives_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    config = configuration(epochs=8, recipe=WORSENING)
    outcome = run(config, tmp_path, keep=2)
    folders = [record.path for record in outcome.checkpoints]
    judge = ValidationJudge(config, digits(), CPU)
    weights, num_read = average_checkpoints(PluginChoice(name="best"), folders, judge)
    expected = load_weights(folders[0])
    assert num_read == 1
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert judge(weights).accuracy == pytest.approx(outcome.metrics["val_accuracy_best"])
    assert judge(weights).accuracy > outcome.metrics["val_accuracy"]


def test_a_configuration_with_averaging_best_trains_to_its_best_epoch(tmp_path: Path) -> None:
    config = configuration(epochs=8, recipe=WORSENING, averaging=PluginChoice(name="best"))
    outcome, weights = train_configuration(config, tmp_path, Recorder(), data=digits())
    assert weights is not None
    found = ValidationJudge(config, digits(), CPU)(weights)
    assert found.accuracy == pytest.approx(outcome.metrics["val_accuracy_best"])


def test_a_resumed_training_keeps_the_best_checkpoint_of_before(tmp_path: Path) -> None:
    config = configuration(epochs=8, recipe=WORSENING)
    whole = run(config, tmp_path / "whole", keep=2)

    class Stops(Recorder):
        def should_stop(self) -> bool:
            return len(self.reports) == 6

    assert run(config, tmp_path / "cut", Stops(), keep=2).state == "interrupted"
    again = run(config, tmp_path / "cut", keep=2)
    assert [record.sha256 for record in again.checkpoints] == [record.sha256 for record in whole.checkpoints]
    assert again.metrics["best_epoch"] == whole.metrics["best_epoch"]


def test_a_pack_keeps_the_best_checkpoint_of_each_training(tmp_path: Path) -> None:
    from trainers.config import TrainTask

    tasks = [
        TrainTask(configuration=configuration(epochs=6, recipe=recipe), folder=tmp_path / name, keep_checkpoints=2)
        for name, recipe in (("falls", WORSENING), ("rises", {"learning_rate": 3e-3}))
    ]
    outcomes = dict(train_packed(tasks, digits(), [Recorder(), Recorder()], CPU))
    for position, task in enumerate(tasks):
        best = int(outcomes[position].metrics["best_epoch"])
        assert epochs(task.folder) == sorted({best, 5, 6})


def test_a_checkpoint_without_a_manifest_is_named(tmp_path: Path) -> None:
    outcome = run(configuration(epochs=2), tmp_path, keep=2)
    folders = [record.path for record in outcome.checkpoints]
    (folders[0] / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="epoch-0001"):
        best_checkpoint(folders, ACCURACY)
