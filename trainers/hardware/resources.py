"""Computes the number of concurrent trials and the resources of each. Plain arithmetic, without devices or torch."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from trainers.config import Resources

_FINEST_SHARE = 10_000
"""Ray allocates GPUs in units of 1 / 10,000."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Frozen):
    """One CUDA GPU."""

    name: str
    total_gib: float
    free_gib: float
    """Memory that was free when the GPU was queried."""


class Devices(_Frozen):
    """Resources of a machine."""

    cores: int = Field(ge=1)
    """Number of CPU cores that this process may use."""
    memory_gib: float
    """Main memory that this process may still allocate."""
    gpus: tuple[Gpu, ...] = ()
    has_mps: bool = False
    """Whether there is an Apple GPU. Trainings use it; scores need float64, which it lacks, and use the CPU."""


class TrialMemory(_Frozen):
    """Memory of a training on its device, as measured by a dry run."""

    process_gib: float = Field(ge=0)
    """Memory per process: libraries or a CUDA context, and the images."""
    training_gib: float = Field(ge=0)
    """Additional memory per training: weights, gradients, optimizer state, activations."""

    def of(self, pack_size: int) -> float:
        """Memory in GiB of a process that trains `pack_size` configurations together."""
        return self.process_gib + pack_size * self.training_gib


class TrialResources(_Frozen):
    """Resources of each trial."""

    cpus: float
    """Number of CPU cores to reserve."""
    gpu_fraction: float
    """Share of a GPU, or number of whole GPUs; 0 for none."""
    threads: int
    """Number of CPU threads, limited so that trials do not wait for each other."""
    max_concurrent: int
    """Number of concurrent trials."""


def has_room(num_bytes: float, free_bytes: float) -> bool:
    """Whether images of a size may be kept on a device: half of its free memory is for the training."""
    return 2 * num_bytes <= free_bytes


def plan_resources(
    devices: Devices, memory: TrialMemory | None = None, limits: Resources | None = None, *, pack_size: int = 1
) -> TrialResources:
    """Divide a machine between as many concurrent trials as its memory and cores allow.

    All GPUs are treated alike, as in Ray, with the smallest free memory among them. Trials are distributed evenly over
    the GPUs.

    Args:
        devices: The machine.
        memory: Measured memory of a trial; `None` if unknown, in which case memory is not a limit.
        limits: Limits set by the user.
        pack_size: Number of trainings per process.

    Raises:
        ValueError: No device has enough memory for a trial.
    """
    limits = limits or Resources()
    need = memory.of(pack_size) * (1 + limits.memory_margin) if memory else 0.0
    by_cores = math.floor(devices.cores / (limits.cpus_per_trial or 1.0)) or 1
    most = min(by_cores, limits.max_concurrent or by_cores)
    fraction = 0.0
    if devices.gpus and limits.gpus_per_trial != 0:
        fraction, concurrent = _share_gpus(devices.gpus, need, limits.gpus_per_trial, most)
    else:
        concurrent = min(most, _how_many(devices.memory_gib, need, "this machine's memory"))
    cpus = limits.cpus_per_trial or float(max(1, devices.cores // concurrent))
    return TrialResources(cpus=cpus, gpu_fraction=fraction, threads=max(1, math.floor(cpus)), max_concurrent=concurrent)


def largest_pack(devices: Devices, memory: TrialMemory, limits: Resources | None = None) -> int:
    """Maximum number of trainings in one process that has a GPU (or the machine, without GPUs) to itself.

    Raises:
        ValueError: A single training does not fit.
    """
    limits = limits or Resources()
    uses_gpu = bool(devices.gpus) and limits.gpus_per_trial != 0
    free = min(gpu.free_gib for gpu in devices.gpus) if uses_gpu else devices.memory_gib
    share = min(limits.gpus_per_trial or 1.0, 1.0) if uses_gpu else 1.0
    left = free * share / (1 + limits.memory_margin) - memory.process_gib
    return _how_many(left, memory.training_gib, "a GPU" if uses_gpu else "this machine's memory")


def _share_gpus(gpus: Sequence[Gpu], need: float, share: float | None, most: int) -> tuple[float, int]:
    """GPU share of a trial and number of concurrent trials."""
    if share is not None and share >= 1:
        if share > len(gpus):
            raise ValueError(
                f"`gpus_per_trial` must be at most {len(gpus)}, the number of GPUs, but got {share}. Lower it."
            )
        return share, min(most, len(gpus) // int(share))
    if share is None:
        fitting = _how_many(min(gpu.free_gib for gpu in gpus), need, "the GPU with the least free memory")
        concurrent = min(most, fitting * len(gpus))
        share = math.floor(_FINEST_SHARE / math.ceil(concurrent / len(gpus))) / _FINEST_SHARE
        return share, concurrent
    return share, min(most, math.floor(1 / share + 1e-9) * len(gpus))


def _how_many(free_gib: float, need_gib: float, where: str) -> int:
    """Number of trials that fit, at least 1."""
    if need_gib <= 0:
        return _FINEST_SHARE
    count = math.floor(free_gib / need_gib)
    if count < 1:
        raise ValueError(
            f"a trial needs {need_gib:.2f} GiB with its margin, but {where} has {max(free_gib, 0.0):.2f} GiB free. "
            "Lower recipe.batch_size, limit the parameters or FLOPs of the topologies, or free memory."
        )
    return count
