"""Averages of a training's checkpoints: which checkpoints are read, and the evaluation on the validation part."""

from pathlib import Path

import pytest
import torch

from search_spaces.recipes import PluginChoice
from tests.rounding import path_length, rounded
from tests.unit.test_loop import equal
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import AverageTask
from trainers.models.building import build_model
from trainers.tasks.averaging import (
    SavedCheckpoints,
    ValidationJudge,
    average,
    average_checkpoints,
    newest_consecutive,
)
from trainers.training.best_epoch import best_report
from trainers.training.checkpoints import CheckpointError, load_weights, read_manifest
from trainers.training.evaluation import Normalizer, evaluate


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Checkpoints of 5 epochs."""
    outcome = run(configuration(epochs=5), tmp_path_factory.mktemp("trial"), keep=5)
    return tuple(record.path for record in outcome.checkpoints)


def task(folders: tuple[Path, ...], name: str, **settings: float) -> AverageTask:
    averaging = PluginChoice(name=name, settings=settings)
    return AverageTask(configuration=configuration(epochs=5), checkpoints=folders, averaging=averaging)


def test_metrics_are_those_of_the_averaged_weights(folders: tuple[Path, ...]) -> None:
    outcome = average(task(folders, "lawa", window=3), digits(), CPU)
    data = digits()
    model = build_model(configuration().topology, data.task, seed=0, device=CPU)
    states = [load_weights(folder) for folder in folders[-3:]]
    model.load_state_dict({name: sum(state[name] for state in states) / 3 for name in states[0]})
    expected = evaluate(model, data.validation, Normalizer(data.mean, data.std, CPU))
    num_terms = 3 + path_length(model, num_tokens=64) + len(data.validation)
    assert outcome.metrics["val_loss"] == rounded(expected.loss, num_terms, torch.float32)
    assert outcome.metrics["val_accuracy"] == expected.accuracy
    assert outcome.metrics["num_averaged"] == 3


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [("last", {}, 1), ("lawa", {"window": 3, "spacing": 2}, 3), ("ema", {"window": 4}, 4)],
)
def test_only_the_checkpoints_in_the_average_are_read(
    folders: tuple[Path, ...], name: str, settings: dict[str, float], count: int
) -> None:
    judge = ValidationJudge(configuration(), digits(), CPU)
    _, num_read = average_checkpoints(PluginChoice(name=name, settings=settings), folders, judge)
    assert num_read == count


def test_too_few_checkpoints_are_explained(folders: tuple[Path, ...]) -> None:
    with pytest.raises(ValueError, match="2 checkpoints saved"):
        average(task(folders[-2:], "lawa", window=3), digits(), CPU)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="epoch-0009"):
        average(task((tmp_path / "epoch-0009",), "last"), digits(), CPU)


def test_a_training_that_ends_earlier_is_averaged_up_to_its_end(folders: tuple[Path, ...]) -> None:
    early = average(task(folders, "lawa", window=2).model_copy(update={"stop_at": 3}), digits(), CPU)
    same = average(task(folders[:3], "lawa", window=2), digits(), CPU)
    assert early.metrics["val_loss"] == same.metrics["val_loss"]
    assert early.metrics["epochs_saved"] == pytest.approx(0.4)
    assert same.metrics["epochs_saved"] == 0.0


def test_the_best_checkpoint_is_the_best_up_to_the_end(folders: tuple[Path, ...]) -> None:
    judge = ValidationJudge(configuration(), digits(), CPU)
    for stop_at in range(1, 6):
        history = read_manifest(folders[-1]).history[:stop_at]
        best = best_report(history, judge.metric).epoch
        found, _ = average_checkpoints(PluginChoice(name="best"), folders, judge, stop_at=stop_at)
        assert equal(found, load_weights(folders[best - 1]))


def test_an_end_whose_checkpoint_was_not_kept_is_explained(folders: tuple[Path, ...]) -> None:
    judge = ValidationJudge(configuration(), digits(), CPU)
    with pytest.raises(ValueError, match=r"`stop_at: 2` needs the checkpoint of epoch 2, but it was not kept"):
        average_checkpoints(PluginChoice(name="last"), (folders[0], *folders[2:]), judge, stop_at=2)


def test_only_checkpoints_without_a_gap_are_averaged(folders: tuple[Path, ...]) -> None:
    with_old = (folders[0], *folders[2:])  # the best epoch is kept, however old it is
    assert newest_consecutive(with_old) == list(folders[2:])
    with pytest.raises(ValueError, match="3 checkpoints saved"):
        average(task(with_old, "lawa", window=4), digits(), CPU)


@pytest.mark.parametrize(
    ("name", "settings", "num_passes"),
    [
        ("last", {}, 1),
        ("greedy-soup", {"window": 3}, 6),
        ("lcsc", {"window": 3, "evaluations": 7}, 8),
        ("class-groups", {"window": 3, "groups": 2}, 6),
    ],
)
def test_forward_passes_are_counted(
    folders: tuple[Path, ...], name: str, settings: dict[str, float], num_passes: int
) -> None:
    assert average(task(folders, name, **settings), digits(), CPU).metrics["forward_passes"] == num_passes


def test_a_soup_of_trials_reads_their_newest_checkpoints(folders: tuple[Path, ...]) -> None:
    mixed = task(folders, "uniform-soup", window=2)
    with pytest.raises(ValueError, match="uniform-soup mixes several trained trials of a study"):
        average(mixed, digits(), CPU)
    given = {"trials": (folders[0], folders[2], folders[4])}
    found = average(mixed.model_copy(update=given), digits(), CPU)
    two = average(task((folders[2], folders[4]), "last"), digits(), CPU)
    same = average(task(folders, "lawa", window=2, spacing=2), digits(), CPU)
    assert found.metrics["val_loss"] == same.metrics["val_loss"] != two.metrics["val_loss"]
    assert found.metrics["num_averaged"] == 2


def test_a_training_ends_at_its_last_epoch_with_the_steps_of_the_whole_one(
    folders: tuple[Path, ...], tmp_path: Path
) -> None:
    recorder = Recorder()
    outcome = run(configuration(epochs=5, stop_at=2), tmp_path, recorder)
    assert outcome.state == "complete"
    assert len(recorder.reports) == 2
    assert equal(load_weights(outcome.checkpoints[-1].path), load_weights(folders[1]))
    with pytest.raises(ValueError, match="`stop_at` must be at most `epochs`"):
        configuration(epochs=2, stop_at=3)


def test_one_of_several_moving_averages_is_selected_by_its_rate(tmp_path: Path) -> None:
    several, single = tmp_path / "several", tmp_path / "single"
    rates = {"ema": {"rates": [0.5, 0.9]}}
    outcome = run(configuration(epochs=2, recipe=rates), several)
    newest = outcome.checkpoints[-1].path
    run(configuration(epochs=2, recipe={"ema": 0.9}), single)
    judge = ValidationJudge(configuration(epochs=2, recipe=rates), digits(), CPU)
    found, _ = average_checkpoints(PluginChoice(name="trained-ema", settings={"rate": 0.9}), [newest], judge)
    assert equal(found, load_weights(newest, average="ema-0.9"))
    assert equal(found, load_weights(single / newest.name, average="ema"))
    with pytest.raises(ValueError, match=r"`rate` must be one of the decays in recipe.ema \(0.5, 0.9\)"):
        average_checkpoints(PluginChoice(name="trained-ema"), [newest], judge)


def test_saved_checkpoints_are_a_sequence(folders: tuple[Path, ...]) -> None:
    checkpoints = SavedCheckpoints(folders)
    assert len(checkpoints) == 5
    newest = load_weights(folders[-1])
    assert all(torch.equal(newest[name], value) for name, value in checkpoints[-1].items())
    assert [set(state) for state in checkpoints[-2:]] == [set(newest)] * 2
    with pytest.raises(IndexError):
        checkpoints[5]
