"""Saves checkpoints while training continues: the state is copied at once, and a thread writes the copy."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, Self

import torch
from torch import Tensor

from trainers.config import EpochReport
from trainers.training.checkpoints import Checkpoint
from trainers.training.reporting import Reporter


class Snapshot(NamedTuple):
    """A copy of a training's state in main memory, which further steps do not change."""

    weights: Mapping[str, Tensor]
    """The state dict to evaluate."""
    averages: Mapping[str, Mapping[str, Tensor]]
    """State dicts of the averages that training maintains, by name."""
    optimizer: Mapping[str, Tensor]
    """The optimizer state by parameter index, such as `3.exp_avg`."""
    wait: Callable[[], None]
    """Waits until the copies are complete, in any thread. They must not be read before."""

    def as_checkpoint(self, epoch: int) -> Checkpoint:
        """The state as a checkpoint after an epoch, without its reports, for `Learner.restore`."""
        self.wait()
        return Checkpoint(
            epoch=epoch,
            weights=dict(self.weights),
            optimizer=dict(self.optimizer),
            history=(),
            averages={name: dict(state) for name, state in self.averages.items()},
        )


class HostCopies:
    """Copies tensors to main memory.

    On a CUDA GPU, the copies go to pinned memory. They are queued like kernels: the next optimizer step waits for them
    on the GPU, but this thread does not, so the copies must not be read before `wait`.
    """

    def __init__(self) -> None:
        self._copied: dict[torch.device, torch.cuda.Event] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor."""
        if tensor.device.type == "cpu":
            return tensor.detach().clone()
        if tensor.device.type != "cuda":
            return tensor.detach().cpu()
        copied = torch.empty_like(tensor, device="cpu", pin_memory=True)
        copied.copy_(tensor.detach(), non_blocking=True)
        self._copied[tensor.device] = torch.cuda.current_stream(tensor.device).record_event()
        return copied

    def wait(self) -> None:
        """Wait until all copies so far are complete."""
        for event in self._copied.values():
            event.synchronize()


class CheckpointWriter:
    """Threads that write checkpoints, for all trainings of a process that are computed together.

    Leaving the context waits for writes in progress.

    Args:
        num_threads: Number of concurrent writes.
    """

    def __init__(self, num_threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="checkpoints")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def submit(self, write: Callable[[], None]) -> "Future[None]":
        """Call a function in one of the threads."""
        return self._pool.submit(write)


class Saver:
    """Saves the checkpoints of one training, and passes each report on once its checkpoint is on disk.

    At most one checkpoint is being written at a time. All methods are called in the training's thread.

    Args:
        writer: Writes the checkpoints.
        reporter: Receives the reports.
    """

    def __init__(self, writer: CheckpointWriter, reporter: Reporter) -> None:
        self._writer = writer
        self._reporter = reporter
        self._pending: tuple[Future[None], EpochReport] | None = None
        self.reporting_s = 0.0
        """Seconds spent in the reporter, which are not part of the training."""

    def save(self, write: Callable[[], None], report: EpochReport) -> None:
        """Start to write the checkpoint of a report, after the one before.

        Raises:
            Exception: As for `settle`, about the checkpoint before.
        """
        self.settle()
        self._pending = self._writer.submit(write), report

    def poll(self) -> None:
        """Pass the report on if its checkpoint is written. Raises as `settle` does."""
        if self._pending is not None and self._pending[0].done():
            self.settle()

    def settle(self) -> bool:
        """Wait until the checkpoint is written, then pass its report on.

        Returns:
            Whether there was a report to pass on.

        Raises:
            trainers.training.checkpoints.CheckpointWriteError: The checkpoint could not be written.
            trainers.training.fencing.SupersededError: A newer attempt at the training has begun.
        """
        if self._pending is None:
            return False
        written, report = self._pending
        self._pending = None
        written.result()
        started = time.perf_counter()
        self._reporter.report(report)
        self.reporting_s += time.perf_counter() - started
        return True

    def close(self) -> None:
        """Wait until nothing is being written any more, without passing a report on."""
        if self._pending is not None:
            written, _ = self._pending
            self._pending = None
            with suppress(Exception):  # the training has ended for another reason
                written.result()
