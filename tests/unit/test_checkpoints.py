"""Checkpoints: atomic writes, verification, and the number that is kept."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from search_spaces.recipes import Recipe
from tests.golden.test_homes import HOMES
from tests.steps import step_settings
from tests.unit.training import CPU, TOPOLOGY, configuration, digits
from trainers.config import CheckpointRecord, Configuration, DataConfig, EpochReport
from trainers.models.building import build_model
from trainers.training import checkpoints
from trainers.training.checkpoints import (
    CheckpointError,
    CheckpointWriteError,
    accepted_digests,
    configuration_digest,
    load_newest,
    load_weights,
    save,
)
from trainers.training.row import Row

DIGEST = "d" * 64


def reports(count: int) -> list[EpochReport]:
    return [
        EpochReport(
            epoch=epoch,
            train_loss=0.1 * epoch,
            val_loss=1 / 3,
            val_accuracy=0.5,
            learning_rate=1e-3,
            num_images=10,
            wall_time_s=0.25,
        )
        for epoch in range(1, count + 1)
    ]


def weights(epoch: int) -> dict[str, Tensor]:
    return {"layer.weight": torch.full((3, 2), float(epoch)), "steps": torch.tensor(epoch)}


def save_epochs(folder: Path, count: int, *, keep: int = 1) -> list[CheckpointRecord]:
    return [
        save(
            folder,
            weights=weights(epoch),
            optimizer={"0.exp_avg": torch.full((2,), float(epoch))},
            history=reports(epoch),
            configuration=DIGEST,
            keep=keep,
        )
        for epoch in range(1, count + 1)
    ]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_epochs(tmp_path, 3)
    checkpoint = load_newest(tmp_path, accepted=[DIGEST])
    assert checkpoint is not None
    assert checkpoint.epoch == 3
    assert checkpoint.history == tuple(reports(3))
    assert torch.equal(checkpoint.weights["layer.weight"], weights(3)["layer.weight"])
    assert checkpoint.weights["steps"].dtype == torch.int64
    assert torch.equal(checkpoint.optimizer["0.exp_avg"], torch.full((2,), 3.0))


def test_a_record_names_the_folder_hash_and_size(tmp_path: Path) -> None:
    record = save_epochs(tmp_path, 1)[0]
    file = record.path / "model.safetensors"
    assert record.path == tmp_path / "epoch-0001"
    assert record.num_bytes == file.stat().st_size
    assert record.sha256 == checkpoints.sha256_of(file.read_bytes())
    assert checkpoints.saved(tmp_path) == (record,)


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path, accepted=[DIGEST]) is None
    assert load_newest(tmp_path / "missing", accepted=[DIGEST]) is None
    assert checkpoints.saved(tmp_path / "missing") == ()


def test_weights_of_keep_epochs_and_optimizer_state_of_two_are_left(tmp_path: Path) -> None:
    save_epochs(tmp_path, 6, keep=4)
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["epoch-0003", "epoch-0004", "epoch-0005", "epoch-0006"]
    with_optimizer = [name for name in folders if (tmp_path / name / "optimizer.safetensors").exists()]
    assert with_optimizer == ["epoch-0005", "epoch-0006"]


def test_while_training_there_is_always_one_to_fall_back_to(tmp_path: Path) -> None:
    save_epochs(tmp_path, 4, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0003", "epoch-0004"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    save_epochs(tmp_path, 3)
    victim = tmp_path / "epoch-0003" / file
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:-5] if damage == "cut" else data[:-5] + b"xxxxx")
    with caplog.at_level(logging.WARNING):
        checkpoint = load_newest(tmp_path, accepted=[DIGEST])
    assert checkpoint is not None
    assert checkpoint.epoch == 2
    assert "epoch-0003" in caplog.text
    assert not (tmp_path / "epoch-0003").exists()


def test_with_all_damaged_training_starts_anew(tmp_path: Path) -> None:
    save_epochs(tmp_path, 4, keep=4)
    for path in tmp_path.iterdir():
        (path / "manifest.json").write_text("{")
    assert load_newest(tmp_path, accepted=[DIGEST]) is None
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_torn_write_are_removed(tmp_path: Path) -> None:
    save_epochs(tmp_path, 1)
    (tmp_path / ".part-abc").mkdir()
    (tmp_path / ".part-abc" / "model.safetensors").write_bytes(b"half")
    checkpoint = load_newest(tmp_path, accepted=[DIGEST])
    assert checkpoint is not None
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_epochs(tmp_path, 1)
    write = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        save_epochs(tmp_path, 1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]
    checkpoint = load_newest(tmp_path, accepted=[DIGEST])
    assert checkpoint is not None
    assert checkpoint.epoch == 1


def test_a_checkpoint_of_another_configuration_is_not_taken(tmp_path: Path) -> None:
    save_epochs(tmp_path, 1)
    with pytest.raises(CheckpointError, match="Choose another folder"):
        load_newest(tmp_path, accepted=["e" * 64])
    assert (tmp_path / "epoch-0001").exists()


def test_an_epoch_saved_again_replaces_the_older_one(tmp_path: Path) -> None:
    save_epochs(tmp_path, 2)
    save(tmp_path, weights=weights(77), optimizer={}, history=reports(2), configuration=DIGEST, keep=1)
    assert load_weights(tmp_path / "epoch-0002")["steps"].item() == 77


def test_damaged_weights_are_not_loaded(tmp_path: Path) -> None:
    path = save_epochs(tmp_path, 1)[0].path
    (path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_weights(path)


def test_a_hash_that_fits_bytes_that_are_no_tensors_is_refused(tmp_path: Path) -> None:
    path = save_epochs(tmp_path, 1)[0].path
    (path / "model.safetensors").write_bytes(b"no tensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoints.sha256_of(b"no tensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="safetensors file"):
        load_weights(path)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "sam"])
def test_an_optimizer_continues_exactly_where_it_was(tmp_path: Path, optimizer: str) -> None:
    recipe = Recipe.model_validate({"optimizer": optimizer, "ema": 0.9, "swa": 0.0})

    def row() -> Row:
        return Row(build_model(TOPOLOGY, digits().task, seed=0, device=CPU), recipe)

    def step(row: Row, number: int) -> None:
        gradient = torch.randn(row.layout.num_numbers, generator=torch.Generator().manual_seed(number))
        parts = [part.clone() for part in row.layout.views(gradient)]
        row.update(row.gather(parts), step_settings(learning_rate=0.1))
        row.finish_epoch(number / 4)

    first, second = row(), row()
    for number in (1, 2):
        step(first, number)
    first.remember("signals.last_change", first.values.clone())
    save(
        tmp_path,
        weights=first.weights(),
        averages=first.averages(),
        optimizer=first.optimizer_tensors(),
        history=reports(1),
        configuration=DIGEST,
        keep=1,
    )
    checkpoint = load_newest(tmp_path, accepted=[DIGEST])
    assert checkpoint is not None
    second.restore(checkpoint)
    remembered = second.recall("signals.last_change")
    assert remembered is not None
    assert torch.equal(remembered, second.values)
    for one in (first, second):
        step(one, 3)
    assert torch.equal(first.values, second.values)
    for name, average in first.averages().items():
        assert all(torch.equal(value, second.averages()[name][key]) for key, value in average.items())
    assert sorted(first.averages()) == ["ema", "swa"]


# --- digests of configurations ---


def test_a_configuration_at_its_defaults_has_the_digest_of_the_given_fields_alone() -> None:
    written_out = configuration(recipe={"label_smoothing": 0.0, "schedule": "cosine", "gradient_clip": 1.0})
    assert configuration_digest(written_out) == configuration_digest(configuration())
    assert configuration_digest(configuration(recipe={"label_smoothing": 0.1})) != configuration_digest(configuration())


def test_checkpoints_of_0_1_0_are_accepted() -> None:
    """What 0.1.0 wrote into the manifests of its golden home, from the configuration that it trained."""
    home = HOMES / "0.1.0" / "home" / "artifacts" / "studies"
    trained = Configuration(
        data=DataConfig(source="digits", image_size=32),
        topology="as-vit:5,4,6,1|2,4,4,1|3,2,3,1|2,1,4,1|16,4",
        recipe=Recipe(learning_rate=0.004, drop_path=0.05, augmentation="affine"),
        epochs=6,
        seed=959608031,
    )
    manifest = json.loads(next(home.glob("interrupted-*/train/trial-0002/epoch-0003/manifest.json")).read_text())
    assert manifest["configuration"] in accepted_digests(trained)
    changed = trained.model_copy(update={"recipe": trained.recipe.model_copy(update={"warmup": 0.2})})
    assert manifest["configuration"] not in accepted_digests(changed)
