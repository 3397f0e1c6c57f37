"""A step that does not fit into memory: its gradient is computed in halves, with the same result."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.device_cases import SPACES
from tests.rounding import likely_difference
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import TrainTask
from trainers.models import building
from trainers.training import set_up
from trainers.training.batch import Batch, micro_batches_of, prepare
from trainers.training.course import Course
from trainers.training.packed import train_packed
from trainers.training.set_up import make_row, training_images
from trainers.training.step import learn
from trainers.worker import run_task

RICH: dict[str, Any] = {
    "batch_size": 18,
    "augmentation": "affine",
    "mixing": "cutmix",
    "label_smoothing": 0.1,
    "dropout": 0.2,
    "drop_path": 0.3,
    "class_weights": "balanced",
}


def batch_of(space: str, recipe: dict[str, Any]) -> Batch:
    """The first batch of a training in float64."""
    config = configuration(recipe=recipe).model_copy(update={"topology": SPACES[space]})
    row = make_row(config, digits(), CPU)
    course = Course.lay_out(config, digits(), row.model, CPU)
    (batch,) = prepare([row], [next(course.steps(1, None, ()))], training_images(digits(), CPU))
    return batch


ATTENDED = {**RICH, "dropout": 0.0, "mixing": {"name": "maskmix", "labels": "attention"}}


@pytest.mark.parametrize("recipe", [{"batch_size": 17}, RICH, ATTENDED], ids=["plain", "rich", "attended"])
@pytest.mark.parametrize("space", SPACES)
def test_the_gradient_in_parts_is_that_of_the_whole_batch(space: str, recipe: dict[str, Any]) -> None:
    gradients, losses = [], []
    for num_parts in (1, 2):
        batch = batch_of(space, recipe)
        batch.row.num_parts = num_parts
        losses += learn([batch], lambda _, gradient: gradients.append(gradient.clone()))
    whole, parts = gradients
    tolerance = likely_difference(2 * 1600, torch.float32)
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=0)
    assert float(torch.linalg.vector_norm(parts - whole)) <= 10 * tolerance * float(torch.linalg.vector_norm(whole))


def test_parts_share_a_batch_by_their_weights() -> None:
    batch = batch_of("as-vit", RICH)
    parts = micro_batches_of(batch, 2)
    assert [len(part.labels) for part, _ in parts] == [9, 9]
    assert [part.first for part, _ in parts] == [0, 9]
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert all(part.keep.shape[-1] == 9 for part, _ in parts)
    assert torch.equal(torch.cat([part.images for part, _ in parts]), batch.images)
    batch.weights[:9] = 0
    assert [share for _, share in micro_batches_of(batch, 2)] == [0.0, 1.0]


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Models cannot train on more than `most` images at a time."""

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        def check(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if model.training and len(inputs[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        model = building.build_model(*args, **kwargs)
        model.register_forward_pre_hook(check)
        return model

    monkeypatch.setattr(set_up, "build_model", build)


@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_a_training_that_runs_out_of_memory_goes_on_in_halves_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, optimizer: str
) -> None:
    config = configuration(epochs=2, recipe={**RICH, "optimizer": optimizer})
    expected = run(config, tmp_path / "whole")
    limit(monkeypatch, 9)
    with caplog.at_level(logging.WARNING):
        outcome = run(config, tmp_path / "halves")
    assert outcome.state == "complete"
    assert outcome.details["memory"] == (
        "a step did not fit into memory, so gradients were computed in 2 parts of each batch"
    )
    assert [record.getMessage() for record in caplog.records] == [
        "Not enough memory for a step of 18 images: the gradients are computed in 2 parts from now on."
    ]
    assert outcome.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=1e-3)
    assert expected.details == {}


def test_the_second_model_of_a_training_goes_on_in_halves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(epochs=1, recipe={"batch_size": 18, "loss": "mutual"})
    expected = run(config, tmp_path / "whole")
    limit(monkeypatch, 9)
    outcome = run(config, tmp_path / "halves")
    assert outcome.state == "complete"
    assert "memory" in outcome.details
    assert outcome.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=1e-3)


def test_a_training_whose_halves_do_not_fit_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 8)
    recorder = Recorder()
    outcome = run_task(TrainTask(configuration=configuration(recipe=RICH), folder=tmp_path), recorder)
    assert (outcome.state, outcome.error) == ("failed", "out-of-memory")
    assert "Lower recipe.batch_size" in (outcome.reason or "")


def test_a_pack_falls_apart_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(epochs=1, recipe={**RICH, "optimizer": "adamw"})
    expected = run(config, tmp_path / "alone")
    limit(monkeypatch, 9)
    tasks = [
        TrainTask(configuration=config.model_copy(update={"seed": seed}), folder=tmp_path / str(seed))
        for seed in (5, 6)
    ]
    outcomes = dict(train_packed(tasks, digits(), [Recorder(), Recorder()], CPU))
    assert outcomes[0].metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=1e-3)
    assert all("memory" in outcome.details for outcome in outcomes.values())
