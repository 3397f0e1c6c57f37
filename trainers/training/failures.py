"""Failures of tasks as plain data, and the release of memory after them."""

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


class ProxyFaultError(RuntimeError):
    """A proxy broke a rule of its interface. The message names the rule and what to do."""


class Failure(NamedTuple):
    """The reason why a task or a score has no result."""

    error: Literal["out-of-memory", "not-finite", "exception", "storage"]
    reason: str
    """Human-readable reason."""
    traceback: tuple[str, ...] = ()
    """Last lines of the traceback, for an exception."""


def describe_failure(error: Exception) -> Failure:
    """An exception as plain data, without references to its frames and their tensors."""
    if is_out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return Failure(
            "out-of-memory",
            f"out of memory: {first_line}. Lower recipe.batch_size, or limit the topology's parameters or FLOPs.",
        )
    if isinstance(error, CheckpointWriteError | SupersededError):
        return Failure("storage", str(error))
    if isinstance(error, ProxyFaultError):
        return Failure("exception", str(error))
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-_TRACEBACK_LINES:]
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    return Failure("exception", reason, tuple(lines))


def failed_outcome(failure: Failure) -> TaskOutcome:
    """The outcome of a failed task. If files cannot be written, it is `interrupted`, since the task is not at fault."""
    details = {"traceback": list(failure.traceback)} if failure.traceback else {}
    state: Literal["failed", "interrupted"] = "interrupted" if failure.error == "storage" else "failed"
    return TaskOutcome(state=state, error=failure.error, reason=failure.reason, details=details)


def free_memory() -> None:
    """Release cached GPU memory. Call it after the traceback of the failure has been released."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Return freed memory to the system on Linux, where glibc keeps it in fragments.

    Otherwise a process that scores topologies of varying size at 224 pixels grows to several times the memory that the
    largest of them needs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or the CPU. torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)
