"""The trial worker: a function of plain data, independent of engines, databases and MLflow."""

import platform
import socket
from collections.abc import Callable, Iterator, Sequence

import torch

from trainers.config import (
    AverageTask,
    EpochReport,
    PackedTrainTask,
    ReplayTask,
    ScoreTask,
    Task,
    TaskOutcome,
    TrainTask,
)
from trainers.data.fitting import load_for_training
from trainers.data.images import load_images
from trainers.hardware.devices import computing_in, describe_device, pick_device
from trainers.hardware.peak_memory import forget_peak, with_peak
from trainers.tasks.averaging import average
from trainers.tasks.replay import replay
from trainers.tasks.scoring import score_topology, scoring_batch
from trainers.training.failures import describe_failure, failed_outcome, free_memory, trim_heap
from trainers.training.loop import train
from trainers.training.packed import train_packed
from trainers.training.ranks import ALONE, RankLostError, RankPlace, Ranks, joined_ranks
from trainers.training.reporting import Reporter

TRIM_AFTER_S = 1.0
"""Minimum duration of scoring after which freed memory is returned to the system, which takes about 0.08 s."""


def run_task(task: Task, reporter: Reporter) -> TaskOutcome:
    """Run a task. An error in the task becomes an outcome with the state `failed` and a reason.

    Args:
        task: A task of any kind.
        reporter: Receives the report of each training epoch; other tasks report nothing. Its exceptions are
            re-raised, since they are not failures of the task.
    """
    return _caught(lambda wrapped: _run(task, wrapped), reporter)


def run_rank(
    task: TrainTask, reporter: Reporter, place: RankPlace, listener: socket.socket | None = None
) -> TaskOutcome:
    """Run a training in several processes, of which this is one; otherwise as `run_task`.

    Args:
        task: The training, the same in all processes.
        reporter: The reporter of rank 0; the others ignore theirs.
        place: The rank of this process.
        listener: The bound socket of `place.port`, for rank 0.

    Raises:
        RankLostError: Another rank died, failed or does not answer. This process must end, because work on its GPU may
            wait for that rank.
    """

    def run(wrapped: Reporter) -> TaskOutcome:
        device = pick_device()
        with joined_ranks(place, device, listener) as ranks:
            return _train(task, wrapped, device, ranks)

    return _caught(run, reporter)


def _caught(run: Callable[[Reporter], TaskOutcome], reporter: Reporter) -> TaskOutcome:
    """The outcome of a task, with its errors as outcomes, but not those of its reporter or of other ranks."""
    wrapped = _ErrorKeepingReporter(reporter)
    try:
        return run(wrapped)
    except RankLostError:
        wrapped.raise_again()
        raise
    except Exception as error:  # a trial may raise any exception; the study continues
        outcome = failed_outcome(describe_failure(error))
    wrapped.raise_again()
    free_memory()
    return outcome


def run_packed(task: PackedTrainTask, reporters: Sequence[Reporter]) -> Iterator[tuple[int, TaskOutcome]]:
    """Run the trainings of a pack together. The results equal those of `run_task` up to rounding.

    Args:
        task: The pack.
        reporters: One reporter per task, called in this thread. Their exceptions are re-raised and end the pack.

    Yields:
        The position and outcome of each training as soon as it ends; the others continue when the next outcome is
        requested. An error in one training affects only its outcome; an error in the data or the pack itself becomes
        the outcome of all trainings that have not ended.
    """
    wrapped = [_ErrorKeepingReporter(reporter) for reporter in reporters]
    left = set(range(len(task.tasks)))
    try:
        data = load_for_training(task.tasks[0].configuration)
        device = pick_device()
        forget_peak(device)
        for position, outcome in train_packed(task.tasks, data, wrapped, device):
            wrapped[position].raise_again()
            left.remove(position)
            yield position, _with_place(with_peak(outcome, device), device)
    except Exception as error:  # as in `run_task`
        failed = failed_outcome(describe_failure(error))
    for one in wrapped:
        one.raise_again()
    free_memory()
    for position in sorted(left):
        yield position, failed.model_copy(update={"details": {**failed.details, "pack_size": len(task.tasks)}})


def _with_place(outcome: TaskOutcome, device: torch.device, num_ranks: int = 1) -> TaskOutcome:
    """The outcome of a training with the machine and the device in its details; `2 x NVIDIA H200` for two ranks."""
    each = describe_device(device)
    place = {"host": platform.node(), "device": each if num_ranks == 1 else f"{num_ranks} x {each}"}
    return outcome.model_copy(update={"details": {**outcome.details, **place}})


class _ErrorKeepingReporter(Reporter):
    """Forwards all calls, and keeps an error of the wrapped reporter, which is not a failure of the task."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._error: Exception | None = None

    def report(self, report: EpochReport) -> None:
        try:
            self._reporter.report(report)
        except Exception as error:  # any exception: the owner of the reporter handles it
            self._error = error
            raise

    def should_stop(self) -> bool:
        return self._reporter.should_stop()

    def raise_again(self) -> None:
        """Raise the reporter's error again, if there was one."""
        if self._error is not None:
            raise self._error


def _run(task: Task, reporter: Reporter) -> TaskOutcome:
    if isinstance(task, ReplayTask):
        return replay(task)
    device = pick_device()
    if isinstance(task, TrainTask):
        return _train(task, reporter, device, ALONE)
    if isinstance(task, AverageTask):
        with computing_in(task.precision):
            return average(task, load_images(task.configuration.data), device)
    return _score(task, pick_device(needs_float64=True))


def _train(task: TrainTask, reporter: Reporter, device: torch.device, ranks: Ranks) -> TaskOutcome:
    data = load_for_training(task.configuration)
    forget_peak(device)
    return _with_place(with_peak(train(task, data, reporter, device, ranks), device), device, ranks.count)


def _score(task: ScoreTask, device: torch.device) -> TaskOutcome:
    """Score on the same training images for every topology of a study."""
    data = load_images(task.data)
    images, labels = scoring_batch(data, split_seed=task.data.split_seed, size=task.batch_size, device=device)
    image_task = data.task
    if task.num_classes is not None:
        if task.num_classes < image_task.num_classes:
            raise ValueError(
                f"networks must have at least the {image_task.num_classes} classes of the images, "
                f"but got num_classes={task.num_classes}. Raise it."
            )
        image_task = image_task.model_copy(update={"num_classes": task.num_classes})
    outcome = score_topology(task, images, image_task, labels)
    if outcome.metrics["wall_time_s"] > TRIM_AFTER_S:
        trim_heap()
    return outcome
