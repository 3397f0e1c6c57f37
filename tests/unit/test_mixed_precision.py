"""Training in bf16, which torch also supports on the CPU."""

from pathlib import Path

import pytest
import torch

from tests.device_cases import RECIPES, SPACES
from tests.unit.training import CPU, Recorder, configuration, digits
from trainers.config import Configuration, TrainTask
from trainers.training import evaluation, step
from trainers.training.loop import train
from trainers.training.packed import train_packed


def losses(config: Configuration, folder: Path) -> list[float]:
    """Losses of a training that runs alone, and of the same training in a pack of two."""
    pack = [config, config.model_copy(update={"recipe": config.recipe.model_copy(update={"learning_rate": 3e-3})})]
    tasks = [TrainTask(configuration=one, folder=folder / str(place)) for place, one in enumerate(pack)]
    alone = train(tasks[0].model_copy(update={"folder": folder / "alone"}), digits(), Recorder(), CPU)
    packed = dict(train_packed(tasks, digits(), [Recorder() for _ in tasks], CPU))
    return [outcome.metrics["val_loss"] for outcome in (alone, packed[0], packed[1])]


@pytest.mark.parametrize(("space", "recipe"), [*((space, "plain") for space in SPACES), ("as-vit", "regularised")])
def test_a_training_in_bf16_comes_close_to_one_in_float32(
    space: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(recipe=RECIPES[recipe], epochs=2).model_copy(update={"topology": SPACES[space]})
    exact = losses(config, tmp_path / "float32")
    for module in (evaluation, step):
        monkeypatch.setattr(module, "autocast", lambda _: torch.autocast("cpu", dtype=torch.bfloat16))
    rounded = losses(config, tmp_path / "bf16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)
