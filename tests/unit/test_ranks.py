"""A training on several ranks equals that in one process, and the loss of a rank ends it soon."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from plugins.protocols import Signal
from plugins.registry import available
from search_spaces.recipes import Recipe
from tests.device_cases import RECIPES
from tests.ranks import (
    HERE,
    WAIT_S,
    begin,
    die_in_validation,
    fail_in_validation,
    find_no_checkpoint,
    hang_in_validation,
    run_in_little_memory,
    run_on_second_gpu,
    run_out_of_memory_in_gather,
    second_process,
    train_on_two,
)
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.test_losses_in_training import teacher_weights
from tests.unit.training import Recorder, configuration, run
from trainers.config import Configuration, EpochReport, InitialWeights, TrainTask
from trainers.training.ranks import (
    ALONE,
    CannotTakePartError,
    JoinedRanks,
    RankLostError,
    RankPlace,
    _use_interface_of,
    open_listener,
)
from trainers.training.reporting import SilentReporter
from trainers.training.row import Row, rank_problem
from trainers.weights.prepared import write_prepared
from trainers.worker import run_rank, run_task

TOLERANCE = 1e-5
REGULARISED = {
    "batch_size": 17,  # parts of 8 and 9 images
    "drop_path": 0.2,
    "dropout": 0.2,
    "label_smoothing": 0.1,
    "augmentation": "flip-crop",
    "mixing": "mixup",
    "class_weights": "balanced",
    "gradient_clip": 0.5,
    "ema": 0.9,
    "swa": 0.3,
}
BY_RECIPE = {
    name: RECIPES[name] for name in ("plain", "sam", "sophia", "schedule-free", "muon", "paced", "pruning", "cycle")
} | {
    "regularised": REGULARISED,
    "spikes": {"spike_guard": 5.0},
    "class errors": {"curriculum": "class-errors"},
    "deep supervision": {},
}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with second_process() as found:
        yield found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> InitialWeights:
    return write_prepared(tmp_path_factory.mktemp("teacher"), teacher_weights())


def assert_same_curve(found: list[EpochReport], expected: list[EpochReport]) -> None:
    assert [report.epoch for report in found] == [report.epoch for report in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=TOLERANCE)
        assert one.val_loss == pytest.approx(other.val_loss, abs=TOLERANCE)
        assert one.val_accuracy == other.val_accuracy
        assert (one.learning_rate, one.num_images, one.training_macs) == (
            other.learning_rate,
            other.num_images,
            other.training_macs,
        )
        assert one.signals == pytest.approx(other.signals, rel=1e-3, abs=1e-4)


def compare(pool: ProcessPoolExecutor, config: Configuration, folder: Path, **fields: Any) -> list[EpochReport]:
    """Train on one and on two ranks, and compare the curves."""
    alone, both = Recorder(), Recorder()
    expected = run(config, folder / "one", alone, **fields)
    assert expected.state == "complete", expected.reason
    outcome = train_on_two(pool, TrainTask(configuration=config, folder=folder / "two", **fields), both)
    assert outcome.state == "complete", outcome.reason
    assert outcome.details["device"] == "2 x cpu"
    assert_same_curve(both.reports, alone.reports)
    return both.reports


@pytest.mark.parametrize("name", BY_RECIPE)
def test_two_ranks_have_the_loss_curve_of_one(name: str, pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    config = configuration(epochs=3, recipe=BY_RECIPE[name])
    if name == "deep supervision":
        config = config.model_copy(update={"topology": f"{config.topology}|deep_supervision"})
    reports = compare(pool, config, tmp_path)
    assert len(reports) == 3


@pytest.mark.parametrize("name", [name for name in sorted(available("losses")) if name != "cross-entropy"])
def test_each_loss_sees_the_whole_batch_on_two_ranks(
    name: str, pool: ProcessPoolExecutor, teacher: InitialWeights, tmp_path: Path
) -> None:
    config = configuration(epochs=2, recipe={"batch_size": 45, "loss": name, "drop_path": 0.1}, teacher=teacher)
    compare(pool, config, tmp_path)


def test_signals_are_those_of_the_whole_batches(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    signals = (Signal.GRADIENT_NORM, Signal.GRADIENT_NOISE, Signal.CHANGED_PREDICTIONS, Signal.WEIGHT_PERSISTENCE)
    reports = compare(pool, configuration(), tmp_path, signals=signals)
    assert set(reports[-1].signals) == {signal.value for signal in signals}


def test_a_training_interrupted_on_two_ranks_resumes_exactly(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    config = configuration(recipe=REGULARISED)
    straight, resumed = Recorder(), Recorder()
    expected = train_on_two(pool, TrainTask(configuration=config, folder=tmp_path / "straight"), straight)
    task = TrainTask(configuration=config, folder=tmp_path / "broken")
    for epoch in (1, 3):
        assert train_on_two(pool, task, InterruptedInside(epoch)).state == "interrupted"
    outcome = train_on_two(pool, task, resumed)
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)
    assert [record.epoch for record in outcome.checkpoints] == [record.epoch for record in expected.checkpoints]


def test_a_training_continues_with_another_number_of_ranks(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    config = configuration(epochs=4)
    alone, moved = Recorder(), Recorder()
    run(config, tmp_path / "alone", alone)
    task = TrainTask(configuration=config, folder=tmp_path / "moved")
    run(config, task.folder, InterruptedInside(2))
    train_on_two(pool, task, InterruptedInside(3))
    run(config, task.folder, moved)
    assert_same_curve(moved.reports, alone.reports)


def test_a_stopping_criterion_ends_all_ranks(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    config = configuration(epochs=6, stopping={"name": "patience", "settings": {"epochs": 1, "min_delta": 1.0}})
    outcome = train_on_two(pool, TrainTask(configuration=config, folder=tmp_path))
    assert outcome.state == "stopped"


def test_a_rank_without_memory_makes_all_compute_in_halves(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    config, alone, both = configuration(recipe=REGULARISED | {"batch_size": 16}), Recorder(), Recorder()
    run(config, tmp_path / "one", alone)
    task = TrainTask(configuration=config, folder=tmp_path / "two")
    outcome = train_on_two(pool, task, both, run=run_in_little_memory)
    assert outcome.state == "complete", outcome.reason
    assert "2 parts" in outcome.details["memory"]
    assert_same_curve(both.reports, alone.reports)


def test_a_rank_without_memory_that_the_others_do_not_know_of_fails(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(recipe={"batch_size": 16}), folder=tmp_path)
    begun = begin(pool, task, run=run_out_of_memory_in_gather)
    with pytest.raises(RankLostError):
        run_rank(task, SilentReporter(), begun.place, begun.listener)
    failed = begun.other.result(60)
    assert (failed.state, failed.error) == ("failed", "out-of-memory")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA GPUs")
def test_two_gpus_have_the_loss_curve_of_one(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    config, alone, both = configuration(recipe=REGULARISED), Recorder(), Recorder()
    task = TrainTask(configuration=config, folder=tmp_path / "one", precision="float32")
    assert run_task(task, alone).state == "complete"
    outcome = train_on_two(pool, task.model_copy(update={"folder": tmp_path / "two"}), both, run=run_on_second_gpu)
    assert outcome.state == "complete", outcome.reason
    for one, other in zip(both.reports, alone.reports, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-3)  # products in TF32
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-3)


# --- lost ranks ---


def test_the_death_of_a_rank_ends_the_others_soon(tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path)
    with second_process() as mortal:
        begun = begin(mortal, task, run=die_in_validation)
        with pytest.raises(RankLostError, match="another of 2 ranks died"):
            run_rank(task, SilentReporter(), begun.place, begun.listener)


def test_a_rank_that_fails_alone_ends_the_others_and_tells_why(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path)
    begun = begin(pool, task, run=fail_in_validation)
    with pytest.raises(RankLostError):
        run_rank(task, SilentReporter(), begun.place, begun.listener)
    failed = begun.other.result(60)
    assert failed.state == "failed"
    assert "this rank alone has a problem" in (failed.reason or "")


def test_the_first_rank_that_fails_alone_ends_the_others(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path)
    begun = begin(pool, task)
    with patch("trainers.training.loop.evaluate", side_effect=ValueError("the first one has a problem")):
        outcome = run_rank(task, SilentReporter(), begun.place, begun.listener)
    assert outcome.state == "failed"
    with pytest.raises(RankLostError):
        begun.other.result(60)


def test_a_rank_that_does_not_answer_is_given_up(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path)
    alone = task.model_copy(update={"folder": tmp_path / "alone"})
    for trained in (run_task(alone, SilentReporter()), pool.submit(run_task, alone, SilentReporter()).result(WAIT_S)):
        assert trained.state == "complete"  # both have the images before the wait begins
    begun = begin(pool, task, run=hang_in_validation, wait_s=8)
    with pytest.raises(RankLostError, match="died, left or did not answer"):
        run_rank(task, SilentReporter(), begun.place, begun.listener)
    with pytest.raises(RankLostError):
        begun.other.result(60)


def test_a_rank_whose_others_do_not_come_gives_up(tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path)
    with open_listener(HERE) as listener:
        port = listener.getsockname()[1]
    with second_process() as other:
        found = other.submit(run_rank, task, SilentReporter(), RankPlace(1, 2, HERE, port, HERE, join_s=1.0))
        with pytest.raises(RankLostError, match=f"all 2 ranks must join within 1 s, but rank 1 found .* {HERE}:{port}"):
            found.result(60)


def test_errors_of_the_reporter_are_not_those_of_the_training(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    class Broken(Recorder):
        def report(self, report: EpochReport) -> None:
            raise OSError("no study listens")

    task = TrainTask(configuration=configuration(), folder=tmp_path)
    begun = begin(pool, task)
    with pytest.raises(OSError, match="no study listens"):
        run_rank(task, Broken(), begun.place, begun.listener)
    with pytest.raises(RankLostError):
        begun.other.result(60)


def test_a_rank_that_cannot_read_the_checkpoint_says_so(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path / "first")
    run(task.configuration, task.folder, InterruptedInside(2))
    begun = begin(pool, task, run=find_no_checkpoint)
    with pytest.raises(RankLostError):
        run_rank(task, SilentReporter(), begun.place, begun.listener)
    with pytest.raises(CannotTakePartError, match="rank 1 must read the checkpoint that rank 0 has read, but: "):
        begun.other.result(60)


def test_the_network_interface_is_named_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    with patch("trainers.training.ranks._interface_of", return_value="eth1"):
        _use_interface_of(HERE)
    assert (os.environ.pop("NCCL_SOCKET_IFNAME"), os.environ["GLOO_SOCKET_IFNAME"]) == ("=eth1", "chosen")


# --- what several ranks cannot train ---


def test_a_batch_smaller_than_the_number_of_ranks_is_refused(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(recipe={"batch_size": 1}), folder=tmp_path)
    outcome = train_on_two(pool, task)
    assert "a batch must have an image for each of the 2 GPUs of a trial, but one has 1" in (outcome.reason or "")


def test_models_with_a_state_besides_their_weights_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    problem = rank_problem(Row(model, Recipe()))
    assert problem is not None
    assert "models on several GPUs must have no state besides their weights" in problem
    assert "2 of Sequential keeps running statistics. Set `gpus_per_trial` to 1." in problem


@pytest.mark.parametrize("size", [2, 7, 16, 17])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_parts_of_all_ranks_are_all_images(size: int, count: int) -> None:
    parts = [list(range(size)[JoinedRanks(rank, count).part_of(size)]) for rank in range(count)]
    assert list(chain(*parts)) == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_needs_no_others() -> None:
    values = torch.arange(3.0)
    ALONE.add(values)
    ALONE.copy_first([values])
    assert torch.equal(ALONE.gather(values, 3), torch.arange(3.0))
    assert ALONE.part_of(5) == slice(0, 5)
