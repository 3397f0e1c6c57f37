"""The guard against loss spikes: what counts as one, and how training continues."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation

from plugins.protocols import Signal
from tests.unit.test_loop import equal, weights_of, without_time
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, TaskOutcome, TrainTask
from trainers.hardware.devices import derive_seed
from trainers.training import loop, packed
from trainers.training.packed import train_packed
from trainers.training.signals import SignalMeter
from trainers.training.spikes import MOST_RETURNS, find_spike

RECIPE = {"batch_size": 8, "drop_path": 0.1, "augmentation": "shift"}
"""Twelve steps per epoch."""
SEED = 5


def config(epochs: int = 4, **recipe: Any) -> Configuration:
    return configuration(epochs=epochs, recipe={**RECIPE, "spike_guard": 12, **recipe})


def test_a_spike_is_a_loss_far_above_the_median_in_robust_standard_deviations() -> None:
    usual = np.random.default_rng(0).normal(2.0, 0.1, 60).tolist()
    scale = float(median_abs_deviation(usual, scale="normal"))
    median = float(np.median(usual))
    below, above = median + 7.99 * scale, median + 8.01 * scale
    assert find_spike(usual, [below], 8.0) is None
    spike = find_spike(usual, [2.0, above], 8.0)
    assert spike is not None
    assert (spike.place, spike.loss) == (1, above)
    assert spike.median == pytest.approx(float(np.median([*usual, 2.0])), rel=1e-9)


def test_a_loss_that_is_not_finite_is_a_spike_and_others_need_twenty_before_them() -> None:
    assert find_spike([], [1.0, 50.0], 3.0) is None
    assert find_spike([1.0] * 19, [50.0], 3.0) is None
    for loss in (math.nan, math.inf):
        spike = find_spike([], [1.0, loss], 3.0)
        assert spike is not None
        assert spike.place == 1


def test_equal_losses_allow_a_percent_per_deviation_and_old_ones_do_not_count() -> None:
    assert find_spike([1.0] * 30, [1.049], 5.0) is None
    assert find_spike([1.0] * 30, [1.051], 5.0) is not None
    assert find_spike([9.0] * 50 + [1.0] * 100, [1.06], 5.0) is not None


def spoil(monkeypatch: pytest.MonkeyPatch, module: Any, *places: tuple[int, int], loss: float = 1e3) -> None:
    """Some steps, by epoch and number, have a large loss, and damage the weights."""
    seeds = {derive_seed(SEED, "augment", epoch, number - 1) for epoch, number in places}
    learn = module.learn

    def spoiled(batches: Any, watch: Any = None) -> Any:
        answers = learn(batches, watch)
        for number, batch in enumerate(batches):
            if batch.step.augmentation_seed in seeds:
                with torch.no_grad():
                    batch.row.values.mul_(-3)
                answers[number] = torch.tensor(loss)
        return answers

    monkeypatch.setattr(module, "learn", spoiled)


class StopsAfter(Recorder):
    """Asks to stop before a step of the epoch after the given one."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def should_stop(self) -> bool:
        return len(self.reports) == self.epochs


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskOutcome, Recorder]:
    """A training whose step 9 of epoch 3 is spoiled."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patched:
        spoil(patched, loop, (3, 9))
        return run(config(), tmp_path_factory.mktemp("guarded"), recorder, keep=4), recorder


def test_a_training_goes_back_and_leaves_the_steps_around_a_spike_out(guarded: tuple[TaskOutcome, Recorder]) -> None:
    outcome, recorder = guarded
    assert outcome.state == "complete"
    (said,) = outcome.details["loss_spikes"]
    assert said.startswith("the training loss was 1000 at step 9 of epoch 3, after a median of ")
    assert said.endswith("went back to the start of the epoch and left out its steps 7 to 10")
    left_out = 90 - recorder.reports[2].num_images
    assert 28 <= left_out <= 32  # four of twelve batches of 7 or 8 images
    assert recorder.reports[2].train_loss < 5
    ordinary, twice = (recorder.reports[number].training_macs for number in (1, 2))
    assert twice > 1.5 * ordinary  # the first attempt at the epoch counts


def test_signals_of_steps_leave_the_abandoned_attempt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, loop, (3, 9))
    taken: list[float] = []
    begin, take = SignalMeter.begin, SignalMeter.take

    def begin_again(meter: SignalMeter) -> None:
        taken.clear()
        begin(meter)

    def note(meter: SignalMeter, gradient: torch.Tensor) -> None:
        taken.append(float(gradient.norm()))
        take(meter, gradient)

    monkeypatch.setattr(SignalMeter, "begin", begin_again)
    monkeypatch.setattr(SignalMeter, "take", note)
    recorder = Recorder()
    run(config(), tmp_path, recorder, signals=(Signal.GRADIENT_NORM,))
    first = taken[:8]  # epoch 3, after the return: twelve steps without four
    assert recorder.reports[2].signals["gradient_norm"] == pytest.approx(sum(first) / len(first), rel=1e-4)


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_training_resumed_before_or_after_a_spike_is_the_same(
    guarded: tuple[TaskOutcome, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    spoil(monkeypatch, loop, (3, 9))
    assert run(config(), tmp_path, StopsAfter(epochs)).state == "interrupted"
    recorder = Recorder()
    outcome = run(config(), tmp_path, recorder)
    expected, straight = guarded
    assert outcome.details == expected.details
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(recorder.reports) == without_time(straight.reports)


def test_a_pack_goes_back_as_a_training_alone_does(
    guarded: tuple[TaskOutcome, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, packed, (3, 9))
    configs = [config(), config().model_copy(update={"seed": 6})]
    tasks = [TrainTask(configuration=one, folder=tmp_path / str(number)) for number, one in enumerate(configs)]
    outcomes = dict(train_packed(tasks, digits(), [Recorder(), Recorder()], CPU))
    assert outcomes[0].metrics["val_loss"] == pytest.approx(guarded[0].metrics["val_loss"], rel=1e-3)
    assert [len(outcomes[number].details.get("loss_spikes", ())) for number in (0, 1)] == [1, 0]


def test_a_training_without_spikes_is_the_same_with_and_without_the_guard(tmp_path: Path) -> None:
    with_it = run(config(2), tmp_path / "with")
    without = run(config(2, spike_guard=None), tmp_path / "without")
    assert with_it.details == {}
    assert equal(weights_of(with_it), weights_of(without))


def test_after_some_returns_a_training_goes_back_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, loop, (1, 2), (1, 5), (1, 8), (1, 11), loss=math.nan)
    with caplog.at_level(logging.WARNING):
        outcome = run(config(1), tmp_path)
    assert (outcome.state, outcome.error) == ("failed", "not-finite")
    assert "at step 11 of epoch 1" in (outcome.reason or "")
    assert len(caplog.records) == MOST_RETURNS
    assert "It goes back no more, after 3 times" in caplog.text


def test_an_epoch_keeps_at_least_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, loop, (1, 1), (1, 2), loss=math.nan)
    outcome = run(config(1, batch_size=45), tmp_path)
    assert outcome.error == "not-finite"
    assert "step 2 of epoch 1" in (outcome.reason or "")
