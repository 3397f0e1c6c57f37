"""Computes how many trials run at a time, and what each gets. It touches no device and does not import torch."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from trainers.config import Resources

_FINEST_SHARE = 10_000
"""Ray counts GPUs in units of 1 / 10,000."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Frozen):
    """One CUDA GPU."""

    name: str
    total_gib: float
    free_gib: float
    """Memory that no process used when this was measured."""


class Devices(_Frozen):
    """The devices of a machine."""

    cores: int = Field(ge=1)
    """CPU cores that this process may use."""
    memory_gib: float
    """Main memory that this process may still use."""
    gpus: tuple[Gpu, ...] = ()
    has_mps: bool = False
    """Whether there is an Apple GPU. Trials run on the CPU nevertheless, because evaluation needs float64."""


class TrialMemory(_Frozen):
    """Memory that a dry run of a training took on its device."""

    process_gib: float = Field(ge=0)
    """Memory of each process: libraries or a CUDA context, and the images."""
    training_gib: float = Field(ge=0)
    """Additional memory of each training: weights, gradients, optimizer state, activations."""

    def of(self, pack_size: int) -> float:
        """Memory in GiB of a process that trains a pack of that size."""
        return self.process_gib + pack_size * self.training_gib


class TrialResources(_Frozen):
    """Resources of each trial."""

    cpus: float
    """CPU cores to reserve."""
    gpu_fraction: float
    """Share of a GPU, or number of whole GPUs; 0 for none."""
    threads: int
    """CPU threads to use, so that trials do not wait for each other's threads."""
    max_concurrent: int
    """Number of trials that run at a time."""


def plan_resources(
    devices: Devices, memory: TrialMemory | None = None, limits: Resources | None = None, *, pack_size: int = 1
) -> TrialResources:
    """Divide a machine among trials: as many at a time as its memory holds and its cores can feed.

    GPUs count as equal, as in Ray; the least free memory of any GPU decides. Trials are spread evenly over the GPUs.

    Args:
        devices: The machine.
        memory: Memory of a trial; `None` if it was not measured, and then memory limits nothing.
        limits: Limits set by the user.
        pack_size: Number of trainings in one process.

    Raises:
        ValueError: A trial fits nowhere.
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
    """Largest pack of trainings that fits into a process with a whole GPU or, without GPUs, the whole machine.

    Raises:
        ValueError: Not even one fits.
    """
    limits = limits or Resources()
    uses_gpu = bool(devices.gpus) and limits.gpus_per_trial != 0
    free = min(gpu.free_gib for gpu in devices.gpus) if uses_gpu else devices.memory_gib
    share = min(limits.gpus_per_trial or 1.0, 1.0) if uses_gpu else 1.0
    left = free * share / (1 + limits.memory_margin) - memory.process_gib
    return _how_many(left, memory.training_gib, "a GPU" if uses_gpu else "this machine's memory")


def _share_gpus(gpus: Sequence[Gpu], need: float, share: float | None, most: int) -> tuple[float, int]:
    """GPU share of a trial, and number of trials at a time."""
    if share is not None and share >= 1:
        if share > len(gpus):
            raise ValueError(f"`gpus_per_trial` must be at most the {len(gpus)} GPUs here, but got {share}. Lower it.")
        return share, min(most, len(gpus) // int(share))
    if share is None:
        fitting = _how_many(min(gpu.free_gib for gpu in gpus), need, "the GPU with the least free memory")
        concurrent = min(most, fitting * len(gpus))
        share = math.floor(_FINEST_SHARE / math.ceil(concurrent / len(gpus))) / _FINEST_SHARE
        return share, concurrent
    return share, min(most, math.floor(1 / share + 1e-9) * len(gpus))


def _how_many(free_gib: float, need_gib: float, where: str) -> int:
    """How many trials fit; raises if not even one does."""
    if need_gib <= 0:
        return _FINEST_SHARE
    count = math.floor(free_gib / need_gib)
    if count < 1:
        raise ValueError(
            f"a trial needs {need_gib:.2f} GiB with its margin, but {where} has {max(free_gib, 0.0):.2f} GiB free. "
            "Lower recipe.batch_size, bound the topologies' parameters or FLOPs, or free memory."
        )
    return count
