"""What went wrong in a task, as plain data."""

import ctypes
import sys
import traceback
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from trainers.config import TaskOutcome
from trainers.training.checkpoints import CheckpointWriteError
from trainers.training.fencing import SupersededError

_TRACEBACK_LINES = 6


class Failure(NamedTuple):
    """Why a task, or one score, has no result."""

    error: Literal["out-of-memory", "not-finite", "exception", "storage"]
    reason: str
    """In words that a person can read."""
    traceback: tuple[str, ...] = ()
    """The last lines of it, for an exception."""


def describe_failure(error: Exception) -> Failure:
    """An exception as plain data; none of its frames, and the tensors that they hold, is kept."""
    if is_out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return Failure(
            "out-of-memory",
            f"out of memory: {first_line}. Lower recipe.batch_size, or bound the topology's parameters or FLOPs.",
        )
    if isinstance(error, CheckpointWriteError | SupersededError):
        return Failure("storage", str(error))
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-_TRACEBACK_LINES:]
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    return Failure("exception", reason, tuple(lines))


def failed_outcome(failure: Failure) -> TaskOutcome:
    """The outcome of a task that ended so; where nothing can or may be written, the task is not to blame and waits."""
    details = {"traceback": list(failure.traceback)} if failure.traceback else {}
    state: Literal["failed", "interrupted"] = "interrupted" if failure.error == "storage" else "failed"
    return TaskOutcome(state=state, error=failure.error, reason=failure.reason, details=details)


def free_memory() -> None:
    """Give cached GPU memory back; to be called once the traceback of what failed is gone."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Give freed memory back to the system on Linux, where glibc keeps it in pieces.

    A process that scores topologies of changing sizes at 224 pixels otherwise grows to several times what any needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or not. torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)
