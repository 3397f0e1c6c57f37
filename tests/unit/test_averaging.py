"""Averages of a training's checkpoints: which checkpoints are read, and the evaluation on the validation part."""

from pathlib import Path

import pytest
import torch

from search_spaces.recipes import PluginChoice
from tests.rounding import path_length, rounded
from tests.unit.training import CPU, configuration, digits, run
from trainers.config import AverageTask
from trainers.models.building import build_model
from trainers.tasks.averaging import SavedCheckpoints, ValidationJudge, average, average_checkpoints
from trainers.training.checkpoints import CheckpointError, load_weights
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


def test_saved_checkpoints_are_a_sequence(folders: tuple[Path, ...]) -> None:
    checkpoints = SavedCheckpoints(folders)
    assert len(checkpoints) == 5
    newest = load_weights(folders[-1])
    assert all(torch.equal(newest[name], value) for name, value in checkpoints[-1].items())
    assert [set(state) for state in checkpoints[-2:]] == [set(newest)] * 2
    with pytest.raises(IndexError):
        checkpoints[5]
