"""Files of population-based training: snapshots from which a training continues are complete or absent."""

from pathlib import Path

import pytest

from orchestrator.engines.ray.generations import COPY_STEPS, CopyStep, Generation, begin_generation, newest_generation
from tests.unit.training import configuration
from trainers.config import Configuration, EpochReport
from trainers.training import checkpoints
from trainers.training.checkpoints import CheckpointError, accepted_digests, configuration_digest, load_newest


def report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch, train_loss=1, val_loss=1, val_accuracy=epoch / 10, learning_rate=0.1, num_images=1, wall_time_s=1
    )


def seeded(seed: int) -> Configuration:
    return configuration().model_copy(update={"seed": seed})


def save(folder: Path, trained: Configuration, epochs: int, *, keep: int = 3) -> None:
    import torch

    for epoch in range(1, epochs + 1):
        checkpoints.save(
            folder,
            weights={"w": torch.full((2,), float(epoch))},
            optimizer={"0.step": torch.tensor(float(epoch))},
            history=[report(number) for number in range(1, epoch + 1)],
            configuration=configuration_digest(trained),
            keep=keep,
        )


def step(number: int, copied_from: int = 1) -> CopyStep:
    return CopyStep(copied_from=copied_from, own_epoch=4, epoch=number, changed={"recipe.learning_rate": (0.1, 0.2)})


def test_a_copy_continues_as_its_own_training_from_the_others_weights(tmp_path: Path) -> None:
    own, other = seeded(1), seeded(2)
    save(tmp_path / "own", own, 4)
    save(tmp_path / "other", other, 6)
    changed = own.model_copy(update={"recipe": own.recipe.model_copy(update={"learning_rate": 0.2})})
    generation = Generation(point={"x": 1}, steps=(step(5),))
    folder = begin_generation(tmp_path / "own", generation, source=tmp_path / "other", epoch=5, configuration=changed)
    assert newest_generation(tmp_path / "own") == (folder, generation)
    found = load_newest(folder, accepted=accepted_digests(changed))
    assert (found.epoch, [one.epoch for one in found.history]) == (5, [1, 2, 3, 4, 5])
    assert found.weights["w"].tolist() == [5.0, 5.0]
    assert [path.name for path in (tmp_path / "own").iterdir()] == [folder.name]  # its own past is gone
    assert len(checkpoints.saved(tmp_path / "other")) == 3  # the other's is not


def test_a_second_copy_takes_the_place_of_the_first(tmp_path: Path) -> None:
    own = seeded(1)
    save(tmp_path / "other", own, 4)
    save(tmp_path / "third", own, 6)
    for steps, source, epoch in (((step(4),), "other", 4), ((step(4), step(6, 2)), "third", 6)):
        begin_generation(
            tmp_path / "own",
            Generation(point={}, steps=steps),
            source=tmp_path / source,
            epoch=epoch,
            configuration=own,
        )
    folder, generation = newest_generation(tmp_path / "own")
    assert folder.name == "generation-02"
    assert [one.copied_from for one in generation.steps] == [1, 2]
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["generation-02"]


def test_a_copy_that_was_made_before_is_not_made_again(tmp_path: Path) -> None:
    own = seeded(1)
    save(tmp_path / "other", own, 4)
    given = {"source": tmp_path / "other", "epoch": 4, "configuration": own}
    generation = Generation(point={}, steps=(step(4),))
    folder = begin_generation(tmp_path / "own", generation, **given)
    (folder / "mark").touch()
    assert begin_generation(tmp_path / "own", generation, **given) == folder
    assert (folder / "mark").exists()


def test_having_nothing_to_copy_is_an_error_and_leaves_the_trial_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engines.ray.generations._PAUSE_S", 0.0)
    own = seeded(1)
    save(tmp_path / "own", own, 2)
    save(tmp_path / "other", own, 6)
    with pytest.raises(CheckpointError, match="epoch 2 or earlier"):
        begin_generation(
            tmp_path / "own",
            Generation(point={}, steps=(step(2),)),
            source=tmp_path / "other",
            epoch=2,
            configuration=own,
        )
    assert newest_generation(tmp_path / "own") is None
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["epoch-0001", "epoch-0002"]


def test_a_generation_of_version_0_1_0_is_read(tmp_path: Path) -> None:
    written = (
        '{"point": {"recipe.learning_rate": 0.2}, "steps": [{"copied_from": 1, "own_epoch": 4, "epoch": 5, '
        '"changed": {"recipe.learning_rate": [0.1, 0.2]}}]}'
    )
    folder = tmp_path / "trial-0003" / "generation-01"
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(written)
    generation = Generation(point={"recipe.learning_rate": 0.2}, steps=(step(5),))
    assert newest_generation(tmp_path / "trial-0003") == (folder, generation)
    assert COPY_STEPS == "lineage"  # the key in the details of stored trials
