"""Rules for plug-ins of recipes in the training step, on models of all spaces: resumed, and in a pack."""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.protocols import Mixing, can_pack
from plugins.registry import available, create
from tests.contracts.test_optimizers_in_training import TOPOLOGIES, take
from tests.unit.test_loop import equal, weights_of, without_time
from tests.unit.test_memory import limit
from tests.unit.test_spikes import StopsAfter, spoil
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, TrainTask
from trainers.training import loop, packed
from trainers.training.batch import Step
from trainers.training.checkpoints import Checkpoint
from trainers.training.course import Course
from trainers.training.packed import train_packed
from trainers.training.row import Row
from trainers.training.set_up import make_row

SETTINGS: dict[str, dict[str, Any]] = {
    "refined-linear": {"norms": "1, 0.4"},
    "step": {"every": 1},
    "cosine-restarts": {"period": 1},
    "warmup-stable-decay": {"decay": 0.6},
    "mup": {"base_width": {"as-vit": 2, "autoformer": 8, "pit": 1}},
}
"""Settings without a default, or with which something happens within two epochs; `base_width` by space."""
BATCH = 45
"""Two steps per epoch."""
PLAIN: dict[str, Any] = {"batch_size": BATCH, "warmup": 0.0, "schedule": "cosine"}
FIELDS = {"augmentation": "augmentations", "mixing": "augmentations", "schedule": "schedules", "rates": "rates"}


def suits(field: str, name: str) -> bool:
    """Whether a plug-in has the role of a recipe field."""
    if field not in ("augmentation", "mixing"):
        return True
    plugin = create("augmentations", name)
    return isinstance(plugin, Mixing) if field == "mixing" else hasattr(plugin, "augment")


CASES = [(field, name) for field, kind in FIELDS.items() for name in sorted(available(kind)) if suits(field, name)]
UNCHANGED = {("augmentation", "none"), ("mixing", "none"), ("rates", "uniform"), ("schedule", "cosine")}
"""Plug-ins of ours that are the plain recipe."""


def config_of(recipe: dict[str, Any], space: str, *, seed: int = 5) -> Configuration:
    made = configuration(epochs=2, recipe={**PLAIN, **recipe})
    return made.model_copy(update={"topology": TOPOLOGIES[space], "seed": seed})


def recipe_of(field: str, name: str, space: str) -> dict[str, Any]:
    settings = {key: one[space] if isinstance(one, dict) else one for key, one in SETTINGS.get(name, {}).items()}
    return {field: {"name": name, **settings}}


def row_and_epochs(config: Configuration) -> tuple[Row, list[list[Step]]]:
    """A new row, and the steps of each epoch with generators that nothing has used."""
    row = make_row(config, digits(), CPU)
    course = Course.lay_out(config, digits(), row.model, CPU)
    return row, [list(course.steps(epoch, None, [])) for epoch in (1, 2)]


def curve_of(row: Row, epochs: Sequence[Sequence[Step]]) -> list[float]:
    found = []
    for number, steps in enumerate(epochs, start=1):
        found += [float(take([row], [step])[0]) for step in steps]
        row.finish_epoch(number / 2)
    return found


_plain: dict[str, list[float]] = {}


def plain_curve(space: str) -> list[float]:
    if space not in _plain:
        _plain[space] = curve_of(*row_and_epochs(config_of({}, space)))
    return _plain[space]


def check(recipe: dict[str, Any], space: str) -> list[float]:
    """Assert that a recipe gives one training: straight, resumed after the first epoch, and in a pack."""
    config = config_of(recipe, space)
    straight, epochs = row_and_epochs(config)
    global_state = torch.get_rng_state()
    curve = curve_of(straight, epochs)
    assert torch.equal(global_state, torch.get_rng_state())

    broken, epochs = row_and_epochs(config)
    found = curve_of(broken, epochs[:1])
    saved = Checkpoint(
        epoch=1,
        weights={key: value.clone() for key, value in broken.weights().items()},
        averages={
            name: {key: value.clone() for key, value in state.items()} for name, state in broken.averages().items()
        },
        optimizer={key: value.clone() for key, value in broken.optimizer_tensors().items()},
        history=(),
    )
    resumed, epochs = row_and_epochs(config)
    resumed.restore(saved)
    found += [float(take([resumed], [step])[0]) for step in epochs[1]]
    resumed.finish_epoch(1.0)
    assert found == pytest.approx(curve, rel=1e-6)
    assert torch.equal(resumed.values, straight.values)
    ours, theirs = resumed.averages(), straight.averages()
    assert ours.keys() == theirs.keys()
    assert all(equal(ours[name], theirs[name]) for name in theirs)

    packed_row, epochs = row_and_epochs(config)
    other, other_epochs = row_and_epochs(config_of(recipe, space, seed=6))
    pairs = zip(chain(*epochs), chain(*other_epochs), strict=True)
    answers = [take([packed_row, other], pair) for pair in pairs]
    assert [float(first) for first, _ in answers] == pytest.approx(curve, rel=1e-4)
    assert [float(second) for _, second in answers] != pytest.approx(curve, rel=1e-4)  # another seed
    return curve


@pytest.mark.parametrize("space", list(TOPOLOGIES))
@pytest.mark.parametrize(("field", "name"), CASES)
def test_a_plug_in_gives_the_same_training_straight_resumed_and_in_a_pack(field: str, name: str, space: str) -> None:
    recipe = recipe_of(field, name, space)
    settings = {key: value for key, value in recipe[field].items() if key != "name"}
    assert can_pack(create(FIELDS[field], name, settings))
    curve = check(recipe, space)
    assert (curve == plain_curve(space)) == ((field, name) in UNCHANGED)


@pytest.mark.parametrize("space", list(TOPOLOGIES))
def test_averages_that_training_maintains_are_resumed(space: str) -> None:
    assert check({"ema": {"rates": [0.5, 0.9]}, "swa": 0.4}, space) == plain_curve(space)


# --- guards ---


@pytest.mark.parametrize("space", [space for space in TOPOLOGIES if space != "as-vit"])
def test_a_training_goes_back_after_a_loss_spike(space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same straight, interrupted and in a pack; `tests/unit/test_spikes.py` has the details on as-vit."""
    config = config_of({"spike_guard": 12, "batch_size": 9, "drop_path": 0.1}, space)
    spoil(monkeypatch, loop, (2, 8), loss=math.nan)
    spoil(monkeypatch, packed, (2, 8), loss=math.nan)
    straight, resumed, in_pack = Recorder(), Recorder(), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    assert expected.state == "complete"
    assert len(expected.details["loss_spikes"]) == 1
    assert run(config, tmp_path / "broken", StopsAfter(1)).state == "interrupted"
    outcome = run(config, tmp_path / "broken", resumed)
    assert outcome.details == expected.details
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)
    tasks = [
        TrainTask(configuration=config.model_copy(update={"seed": seed}), folder=tmp_path / str(seed))
        for seed in (5, 6)
    ]
    outcomes = dict(train_packed(tasks, digits(), [in_pack, Recorder()], CPU))
    assert [len(outcomes[number].details.get("loss_spikes", ())) for number in (0, 1)] == [1, 0]
    for found, wanted in zip(in_pack.reports, straight.reports, strict=True):
        assert found.num_images == wanted.num_images
        assert found.val_loss == pytest.approx(wanted.val_loss, rel=1e-3)


@pytest.mark.parametrize("space", [space for space in TOPOLOGIES if space != "as-vit"])
def test_a_training_that_runs_out_of_memory_goes_on_in_halves(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same alone and in a pack; `tests/unit/test_memory.py` has the details on as-vit."""
    config = config_of({"batch_size": 18, "mixing": "cutmix", "dropout": 0.2, "drop_path": 0.3}, space)
    expected = run(config, tmp_path / "whole")
    limit(monkeypatch, 9)
    alone = run(config, tmp_path / "alone")
    tasks = [
        TrainTask(configuration=config.model_copy(update={"seed": seed}), folder=tmp_path / str(seed))
        for seed in (5, 6)
    ]
    outcomes = dict(train_packed(tasks, digits(), [Recorder(), Recorder()], CPU))
    for outcome in (alone, outcomes[0]):
        assert outcome.state == "complete", outcome.reason
        assert "2 parts" in outcome.details["memory"]
        assert outcome.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=2e-3)
