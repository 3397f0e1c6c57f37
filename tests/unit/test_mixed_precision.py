"""Training in bf16, which torch also supports on the CPU, and the choice of device and precision."""

from pathlib import Path

import pytest
import torch

from tests.device_cases import RECIPES, SPACES
from tests.unit.training import CPU, Recorder, configuration, digits
from trainers.config import Configuration, Precision, TrainTask
from trainers.hardware import devices
from trainers.hardware.devices import autocast, computing_in, pick_device
from trainers.training.loop import train
from trainers.training.packed import train_packed


def losses(config: Configuration, folder: Path, precision: Precision) -> list[float]:
    """Losses of a training that runs alone, and of the same training in a pack of two."""
    pack = [config, config.model_copy(update={"recipe": config.recipe.model_copy(update={"learning_rate": 3e-3})})]
    tasks = [
        TrainTask(configuration=one, folder=folder / str(place), precision=precision) for place, one in enumerate(pack)
    ]
    alone = train(tasks[0].model_copy(update={"folder": folder / "alone"}), digits(), Recorder(), CPU)
    packed = dict(train_packed(tasks, digits(), [Recorder() for _ in tasks], CPU))
    return [outcome.metrics["val_loss"] for outcome in (alone, packed[0], packed[1])]


@pytest.mark.parametrize(("space", "recipe"), [*((space, "plain") for space in SPACES), ("as-vit", "regularised")])
def test_a_training_in_bf16_comes_close_to_one_in_float32(space: str, recipe: str, tmp_path: Path) -> None:
    config = configuration(recipe=RECIPES[recipe], epochs=2).model_copy(update={"topology": SPACES[space]})
    exact = losses(config, tmp_path / "float32", "float32")
    rounded = losses(config, tmp_path / "bf16", "bfloat16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


def is_bf16(device: str) -> bool:
    with autocast(torch.device(device)):
        return torch.is_autocast_enabled(device)


def test_the_precision_is_bf16_only_where_it_is_asked_for_or_a_gpu_has_it() -> None:
    assert not is_bf16("cpu")
    with computing_in("bfloat16"):
        assert is_bf16("cpu")
        with computing_in("float32"):
            assert not is_bf16("cpu")
        assert is_bf16("cpu")
    assert not is_bf16("cpu")


@pytest.mark.parametrize(("precision", "warns"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_a_gpu_without_bf16_computes_in_float32_and_says_so_if_bf16_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, precision: Precision, warns: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    given: list[bool] = []
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled, **__: given.append(enabled))
    devices._say_once.cache_clear()
    with computing_in(precision):
        autocast(torch.device("cuda"))
        autocast(torch.device("cuda"))
    assert given == [False, False]
    assert [record.getMessage() for record in caplog.records] == (
        ["Old GPU has no bfloat16, so float32 is used."] if warns else []
    )


def test_apples_gpu_trains_but_computes_nothing_that_needs_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device("mps")
    assert pick_device(needs_float64=True) == torch.device("cpu")
