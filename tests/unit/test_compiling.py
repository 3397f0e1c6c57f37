"""`torch.compile` as an option: what happens if it fails, and that results are the same if it works."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.test_loop import equal, weights_of
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, TaskOutcome, TrainTask
from trainers.training.compiling import CompiledForward, say_packs_are_not_compiled
from trainers.training.loop import train
from trainers.training.packed import train_packed

CONFIGURATION = configuration(epochs=2, recipe={"drop_path": 0.2, "dropout": 0.1})
CompilerError = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})


def compiled(folder: Path, config: Configuration = CONFIGURATION) -> TaskOutcome:
    return train(TrainTask(configuration=config, folder=folder, compile=True), digits(), Recorder(), CPU)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "compile", lambda _: fails)


def test_without_a_compiler_the_training_is_the_same_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_with(monkeypatch, CompilerError("Failed to find C++ compiler\nset CXX"))
    with caplog.at_level(logging.WARNING):
        outcome = compiled(tmp_path / "compiled")
    assert equal(weights_of(outcome), weights_of(run(CONFIGURATION, tmp_path / "plain")))
    assert outcome.details == {"not_compiled": "InductorError: Failed to find C++ compiler"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "Training without torch.compile, which fails here: InductorError: Failed to find C++ compiler"
    )


def test_other_errors_are_not_taken_for_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        CompiledForward(nn.Linear(2, 2))(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"loss": "guidance"}, "the loss `guidance` reads the blocks of the model in each step"),
        ({"loss": {"name": "mutual", "together": True}}, "the loss `mutual` computes two models together"),
        (
            {"mixing": {"name": "maskmix", "labels": "attention"}},
            "the mixing `maskmix` reads the attention of the model in each step",
        ),
    ],
)
def test_hooks_of_a_step_are_not_hidden_in_compiled_code(
    recipe: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, AssertionError("compiled code was called"))
    outcome = compiled(tmp_path, configuration(epochs=1, recipe=recipe))
    assert outcome.details == {"not_compiled": reason}


def test_packs_say_that_they_are_not_compiled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    say_packs_are_not_compiled.cache_clear()
    tasks = [
        TrainTask(
            configuration=configuration(epochs=1).model_copy(update={"seed": seed}),
            folder=tmp_path / str(seed),
            compile=True,
        )
        for seed in (1, 2)
    ]
    for _ in range(2):
        dict(train_packed(tasks, digits(), [Recorder(), Recorder()], CPU))
    assert [record.getMessage() for record in caplog.records] == [
        "resources.compile has no effect on trainings in a pack."
    ]


@pytest.mark.slow
def test_a_compiled_training_is_the_same_up_to_rounding(tmp_path: Path) -> None:
    # One block and one size of batches: a compiler takes half a minute for each block of each shape.
    config = configuration(epochs=1, recipe={"batch_size": 30}).model_copy(update={"topology": "autoformer:1,1|16,4"})
    outcome, expected = compiled(tmp_path / "compiled", config), run(config, tmp_path / "plain")
    if "not_compiled" in outcome.details:
        pytest.skip(outcome.details["not_compiled"])
    assert outcome.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=1e-3)
