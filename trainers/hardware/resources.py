"""How many trials go side by side, and what each gets. Plain arithmetic: no device is touched, and torch not loaded."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from trainers.config import Resources

_FINEST_SHARE = 10_000
"""Ray counts GPUs in steps of 1 / 10,000."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Frozen):
    """One CUDA GPU."""

    name: str
    total_gib: float
    free_gib: float
    """What no process had taken when it was looked at."""


class Devices(_Frozen):
    """What a machine offers."""

    cores: int = Field(ge=1)
    """CPU cores that this process may use."""
    memory_gib: float
    """Main memory that is free for it."""
    gpus: tuple[Gpu, ...] = ()
    has_mps: bool = False
    """An Apple GPU is there. Trials compute on the CPU all the same: evaluation needs float64, which it lacks."""


class TrialMemory(_Frozen):
    """What a dry run of a training took, on the device that it computes on."""

    process_gib: float = Field(ge=0)
    """Of every process: libraries or a CUDA context, and the images."""
    training_gib: float = Field(ge=0)
    """Of every training besides: weights, gradients, optimizer state, activations."""

    def of(self, pack_size: int) -> float:
        """GiB of a process that trains so many configurations together."""
        return self.process_gib + pack_size * self.training_gib


class TrialResources(_Frozen):
    """What each trial gets."""

    cpus: float
    """Cores to reserve for it."""
    gpu_fraction: float
    """Share of a GPU, or number of whole GPUs; 0 for none."""
    threads: int
    """CPU threads that it may use, so that trials do not wait for each other's."""
    max_concurrent: int
    """Trials at the same time."""


def plan_resources(
    devices: Devices, memory: TrialMemory | None = None, limits: Resources | None = None, *, pack_size: int = 1
) -> TrialResources:
    """Share a machine between trials: as many at a time as its memory holds and its cores can feed.

    GPUs are taken as equal, as Ray does; the one with the least free memory counts. Trials are spread evenly over them.

    Args:
        devices: The machine.
        memory: What a trial takes; `None` where that was not measured, and memory then limits nothing.
        limits: What the user demands.
        pack_size: Trainings in one process.

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
    """Most trainings that a process may train together, when it has a GPU, or else the machine, for itself.

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
    """Share of a GPU and number of trials at a time."""
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
    """How many trials fit, at least 1."""
    if need_gib <= 0:
        return _FINEST_SHARE
    count = math.floor(free_gib / need_gib)
    if count < 1:
        raise ValueError(
            f"a trial needs {need_gib:.2f} GiB with its margin, but {where} has {max(free_gib, 0.0):.2f} GiB free. "
            "Lower recipe.batch_size, bound the topologies' parameters or FLOPs, or free memory."
        )
    return count
