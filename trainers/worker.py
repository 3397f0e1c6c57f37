"""The trial worker: a function of plain data. It knows no engine, no database and no MLflow."""

import traceback
from pathlib import Path

import torch

from trainers.averaging import average
from trainers.config import AverageTask, ReplayTask, ScoreTask, Task, TaskOutcome, TrainTask
from trainers.data import load_images
from trainers.devices import make_generator, pick_device
from trainers.evaluation import Normalizer
from trainers.loop import Reporter, train
from trainers.replay import replay
from trainers.scoring import score_topology

_TRACEBACK_LINES = 6


def run_task(task: Task, reporter: Reporter) -> TaskOutcome:
    """Do what a task says. Whatever goes wrong in it is an outcome with the state `failed` and a reason.

    Args:
        task: A task of any kind.
        reporter: Told of each epoch of a training; other tasks report nothing.
    """
    try:
        return _run(task, reporter)
    except (torch.OutOfMemoryError, MemoryError) as error:
        outcome = _out_of_memory(error)
    except Exception as error:  # a trial may raise anything, and the study goes on
        outcome = _out_of_memory(error) if _is_allocation_failure(error) else _failed(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # after the traceback, and the tensors that it held, are gone
    return outcome


def _run(task: Task, reporter: Reporter) -> TaskOutcome:
    if isinstance(task, ReplayTask):
        return replay(task)
    device = pick_device()
    if isinstance(task, TrainTask):
        return train(task, load_images(task.configuration.data), reporter, device)
    if isinstance(task, AverageTask):
        return average(task, load_images(task.configuration.data), device)
    return _score(task, device)


def _score(task: ScoreTask, device: torch.device) -> TaskOutcome:
    """Score on training images that are the same for every topology of a study."""
    data = load_images(task.data)
    order = torch.randperm(len(data.train), generator=make_generator(task.data.split_seed, "score"))
    images = data.train.images[order[: task.batch_size]].to(device)
    return score_topology(task, Normalizer(data.mean, data.std, device)(images), data.task)


def _out_of_memory(error: BaseException) -> TaskOutcome:
    first_line = str(error).partition("\n")[0]
    return TaskOutcome(
        state="failed",
        error="out-of-memory",
        reason=f"out of memory: {first_line}. Lower recipe.batch_size, or bound the topology's parameters or FLOPs.",
    )


def _is_allocation_failure(error: Exception) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _failed(error: Exception) -> TaskOutcome:
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-_TRACEBACK_LINES:]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return TaskOutcome(
        state="failed",
        error="exception",
        reason=f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})",
        details={"traceback": lines},
    )
