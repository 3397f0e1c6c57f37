"""Trainings on two ranks: rank 0 in the test's process, rank 1 in another one."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from tests.unit.training import Recorder
from trainers.config import TaskOutcome, TrainTask
from trainers.training.ranks import JoinedRanks, RankPlace, open_listener
from trainers.training.reporting import Reporter, SilentReporter
from trainers.worker import run_rank

HERE = "127.0.0.1"
WAIT_S = 120.0
Run = Callable[..., TaskOutcome]


@contextmanager
def second_process() -> Iterator[ProcessPoolExecutor]:
    """A process for rank 1 of any number of trainings, one after another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_has_started).result(WAIT_S)
        yield pool


def _has_started() -> None:
    """Imports this module, and torch with it, before a training waits."""


class Begun(NamedTuple):
    """Rank 1 of a training that waits for rank 0."""

    other: "Future[TaskOutcome]"
    place: RankPlace
    """That of rank 0."""
    listener: Any


def begin(pool: ProcessPoolExecutor, task: TrainTask, *, run: Run = run_rank, wait_s: float = WAIT_S) -> Begun:
    """Start rank 1, which calls `run`, a function of this module or `run_rank`."""
    listener = open_listener(HERE)
    place = RankPlace(0, 2, HERE, listener.getsockname()[1], HERE, wait_s)
    return Begun(pool.submit(run, task, SilentReporter(), place._replace(rank=1)), place, listener)


def train_on_two(
    pool: ProcessPoolExecutor, task: TrainTask, reporter: Reporter | None = None, *, run: Run = run_rank
) -> TaskOutcome:
    """Train on two ranks; the outcome of rank 0. Both must end in the same state."""
    begun = begin(pool, task, run=run)
    outcome = run_rank(task, reporter or Recorder(), begun.place, begun.listener)
    assert begun.other.result(WAIT_S).state == outcome.state
    return outcome


# --- functions for rank 1 ---


def run_on_second_gpu(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank with a GPU that rank 0 does not use."""
    with torch.cuda.device(1):
        return run_rank(task, reporter, place)


def run_in_little_memory(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank whose memory is too small for the gradient of more than 6 images."""
    grad = torch.autograd.grad

    def limited(loss: Any, *arguments: Any, **options: Any) -> Any:
        if limited.num_images > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad(loss, *arguments, **options)

    with patch("torch.autograd.grad", limited), _counting(limited):
        return run_rank(task, reporter, place)


@contextmanager
def _counting(function: Any) -> Iterator[None]:
    """Note the number of images of the latest forward pass in `function.num_images`."""
    from trainers.training import step

    options = step._forward_options

    def noted(batch: Any) -> Any:
        function.num_images = len(batch.images)
        return options(batch)

    with patch.object(step, "_forward_options", noted):
        yield


def run_out_of_memory_in_gather(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank that once has too little memory for the logits of the others."""
    gather, calls = JoinedRanks.gather, iter(range(1000))

    def limited(ranks: JoinedRanks, part: torch.Tensor, size: int) -> torch.Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gather(ranks, part, size)

    with patch.object(JoinedRanks, "gather", limited):
        return run_rank(task, reporter, place)


def find_no_checkpoint(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank that does not see the files of rank 0."""
    return run_rank(task.model_copy(update={"folder": task.folder.with_name("elsewhere")}), reporter, place)


def die_in_validation(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank that is killed at the end of its first epoch."""
    return _troubled(lambda *_, **__: os._exit(9), task, reporter, place)


def fail_in_validation(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank with an error at the end of its first epoch."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("this rank alone has a problem")

    return _troubled(fail, task, reporter, place)


def hang_in_validation(task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    """A rank that does not answer for a while after its first epoch."""
    return _troubled(lambda *_, **__: time.sleep(20), task, reporter, place)


def _troubled(trouble: Any, task: TrainTask, reporter: Reporter, place: RankPlace) -> TaskOutcome:
    with patch("trainers.training.loop.evaluate", trouble):
        return run_rank(task, reporter, place)
