"""The memory that a training takes on a GPU. On a CPU, freed memory stays with the process, so peaks tell little."""

from typing import TYPE_CHECKING

from trainers.config import TaskOutcome
from trainers.hardware.host import GIB

if TYPE_CHECKING:
    import torch

MEMORY_PEAK = "memory_peak_gib"
"""Metric of a training on a CUDA GPU: peak of the memory of its tensors. Trainings of a pack share theirs."""


def forget_peak(device: "torch.device") -> None:
    """Begin to measure, in this process."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def with_peak(outcome: TaskOutcome, device: "torch.device") -> TaskOutcome:
    """The outcome of a training with its peak since `forget_peak`, if it ran on a CUDA GPU and has metrics."""
    if device.type != "cuda" or not outcome.metrics:
        return outcome
    import torch

    peak = torch.cuda.max_memory_allocated(device) / GIB
    return outcome.model_copy(update={"metrics": {**outcome.metrics, MEMORY_PEAK: peak}})
