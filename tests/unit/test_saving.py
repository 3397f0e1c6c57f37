"""Checkpoints are written while training continues, and a report follows once its checkpoint is on disk."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.recipes import Recipe
from tests.steps import step_settings
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers.config import EpochReport, TaskOutcome, TrainTask
from trainers.models.building import build_model
from trainers.training import checkpoints, loop
from trainers.training.checkpoints import CheckpointWriteError
from trainers.training.learner import RowLearner
from trainers.training.packed import train_packed
from trainers.training.row import Row
from trainers.training.set_up import training_images
from trainers.training.signals import SignalMeter
from trainers.worker import run_task

CONFIGURATION = configuration(epochs=3, recipe={"batch_size": 24})
"""Four steps per epoch."""


class Watcher(Recorder):
    """Notes which checkpoints exist at each report, and how many steps were asked for before it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.found: list[bool] = []
        self.asked_before: list[int] = []

    def report(self, report: EpochReport) -> None:
        super().report(report)
        self.found.append((self.folder / f"epoch-{report.epoch:04d}" / checkpoints.MANIFEST).exists())
        self.asked_before.append(self.asked)


Save = Callable[..., Any]


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Save, int], None]], None]:
    """Replaces the writing of checkpoints; the replacement gets the function that writes one, and its epoch."""

    def replace(write: Callable[[Save, int], None]) -> None:
        save = checkpoints.save

        def replaced(folder: Path, **given: Any) -> None:
            write(lambda: save(folder, **given), given["history"][-1].epoch)

        monkeypatch.setattr(checkpoints, "save", replaced)

    return replace


def train_pack(folder: Path, reporters: list[Watcher]) -> dict[int, TaskOutcome]:
    changed = [CONFIGURATION.model_copy(update={"seed": seed}) for seed in range(len(reporters))]
    tasks = [TrainTask(configuration=one, folder=reporters[number].folder) for number, one in enumerate(changed)]
    return dict(train_packed(tasks, digits(), reporters, CPU))


@pytest.mark.parametrize("packed", [False, True])
def test_steps_go_on_while_a_checkpoint_is_written_and_its_report_waits_for_it(
    tmp_path: Path, saving: Callable[[Callable[[Save, int], None]], None], packed: bool
) -> None:
    watchers = [Watcher(tmp_path / str(number)) for number in range(2 if packed else 1)]

    def write(save: Save, epoch: int) -> None:
        deadline = time.monotonic() + 300
        while watchers[0].asked < 4 * epoch + 2 and epoch < 3 and time.monotonic() < deadline:
            time.sleep(0.001)  # until two steps of the next epoch
        save()

    saving(write)
    if packed:
        assert {outcome.state for outcome in train_pack(tmp_path, watchers).values()} == {"complete"}
    else:
        run(CONFIGURATION, watchers[0].folder, watchers[0])
    for watcher in watchers:
        assert [report.epoch for report in watcher.reports] == [1, 2, 3]
        assert watcher.found == [True] * 3
        first, second, last = watcher.asked_before
        assert 5 < first <= 9
        assert 9 < second <= 13
        assert last >= 12


def test_a_slow_write_delays_the_end_of_the_next_epoch_so_that_a_report_can_end_the_training(
    tmp_path: Path, saving: Callable[[Callable[[Save, int], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[int] = []
    evaluate, is_validating = loop.evaluate, threading.Event()
    monkeypatch.setattr(loop, "evaluate", lambda *args, **more: validated.append(1) or evaluate(*args, **more))

    class StopsAfterTheFirst(Recorder):
        def should_stop(self) -> bool:
            super().should_stop()
            return len(self.reports) == 1

    reporter = StopsAfterTheFirst()

    def write(save: Save, epoch: int) -> None:
        deadline = time.monotonic() + 300
        while reporter.asked < 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        is_validating.wait(0.05)  # the second epoch has no step left
        save()

    saving(write)
    outcome = run(CONFIGURATION, tmp_path, reporter)
    assert outcome.reason == "asked to end in epoch 2 of 3"
    assert [record.epoch for record in outcome.checkpoints] == [1]
    assert len(validated) == 1


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_write_that_fails_ends_the_training_with_its_reason(
    tmp_path: Path, saving: Callable[[Callable[[Save, int], None]], None], failing: int
) -> None:
    def write(save: Save, epoch: int) -> None:
        if epoch == failing:
            raise CheckpointWriteError("the checkpoint must be written, but: No space left on device.")
        save()

    saving(write)
    recorder = Recorder()
    outcome = run_task(TrainTask(configuration=CONFIGURATION, folder=tmp_path), recorder)
    assert (outcome.state, outcome.error) == ("interrupted", "storage")
    assert "No space left on device" in (outcome.reason or "")
    assert [report.epoch for report in recorder.reports] == list(range(1, failing))
    assert recorder.asked <= 4 * (failing + 1)


def test_a_step_that_fails_loses_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, steps = loop.learn, []

    def limited(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) > 8:
            raise RuntimeError("no more steps")
        return learn(*arguments)

    monkeypatch.setattr(loop, "learn", limited)
    watcher = Watcher(tmp_path)
    outcome = run_task(TrainTask(configuration=CONFIGURATION, folder=tmp_path), watcher)
    assert (outcome.state, outcome.error) == ("failed", "exception")
    assert [report.epoch for report in watcher.reports] == [1, 2]


def test_a_snapshot_does_not_change_with_further_steps() -> None:
    row = Row(build_model(TOPOLOGY, digits().task, seed=0, device=CPU), Recipe.model_validate({"ema": 0.9, "swa": 0.0}))
    learner = RowLearner(
        row, SignalMeter(frozenset(), row, digits().validation, training_images(digits(), CPU), seed=0)
    )

    def step() -> None:
        row.update(torch.ones_like(row.values), step_settings(learning_rate=0.1))
        row.finish_epoch(1.0)

    step()
    snapshot = learner.snapshot()
    snapshot.wait()
    states = {"weights": snapshot.weights, "optimizer": snapshot.optimizer, **snapshot.averages}
    assert sorted(states) == ["ema", "optimizer", "swa", "weights"]
    before = {name: {key: value.clone() for key, value in state.items()} for name, state in states.items()}
    step()
    for name, state in states.items():
        assert all(torch.equal(value, before[name][key]) for key, value in state.items()), name
    weights = row.weights()
    assert not torch.equal(weights[row.names[0]], snapshot.weights[row.names[0]])
    row.restore(snapshot.as_checkpoint(1))
    assert all(torch.equal(row.weights()[name], value) for name, value in before["weights"].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_copies_of_a_gpu_are_pinned_and_complete_after_waiting() -> None:
    device = torch.device("cuda")
    row = Row(build_model(TOPOLOGY, digits().task, seed=0, device=device), Recipe())
    learner = RowLearner(
        row, SignalMeter(frozenset(), row, digits().validation, training_images(digits(), device), seed=0)
    )
    expected = row.values.cpu()
    torch.cuda._sleep(10**8)  # the copies wait for the work before
    snapshot = learner.snapshot()
    with torch.no_grad():
        row.values.zero_()
    snapshot.wait()
    assert all(value.is_pinned() for value in snapshot.weights.values())
    for name, view in zip(row.names, row.layout.views(expected), strict=True):
        assert torch.equal(snapshot.weights[name], view)


def test_the_time_of_a_reporter_is_no_time_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = [0.0]
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])

    class Slow(Recorder):
        def report(self, report: EpochReport) -> None:
            super().report(report)
            late[0] += 1000.0

    recorder = Slow()
    run(CONFIGURATION, tmp_path, recorder)
    assert late == [3000.0]
    assert all(report.wall_time_s < 1000 for report in recorder.reports)
