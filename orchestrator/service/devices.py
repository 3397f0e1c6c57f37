"""Which GPUs a study gets. The shares of all studies of a pool are counted together."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.settings import Settings
from orchestrator.spec.study_file import StudySpec
from orchestrator.store.service_records import Placement, PoolFull, SubmissionRecord, WantedDevices

CLUSTER = "*"
"""Index under which GPUs of a cluster are counted; Ray chooses them."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_FREE = 1e-9
"""Shares are sums of floating-point numbers."""
_COUNT_GPUS = "from orchestrator.engines.choice import detect_machine; print(detect_machine().num_gpus)"
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")
"""Device files, one of which exists on a machine with GPUs that PyTorch can use."""


class DevicePool(NamedTuple):
    """The devices that studies share: those of a machine, or of a Ray cluster."""

    name: str
    num_gpus: int | None
    """`None` does not count them."""
    max_studies: int
    is_cluster: bool = False


def detect_pool(settings: Settings) -> DevicePool:
    """The pool of this machine, or the cluster that RAY_ADDRESS names. Counting GPUs takes seconds."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        gpus = settings.cluster_gpus
        return DevicePool(address, gpus, settings.max_studies or max(gpus or 1, 1), is_cluster=True)
    num_gpus = _num_gpus()
    return DevicePool(platform.node() or "localhost", num_gpus, settings.max_studies or max(num_gpus, 1))


def _num_gpus() -> int:
    if not any(next(Path("/dev").glob(pattern), None) for pattern in _GPU_FILES):
        return 0
    # In another process, because PyTorch would keep memory on each GPU.
    done = subprocess.run([sys.executable, "-P", "-c", _COUNT_GPUS], capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout)


def wanted_devices(spec: StudySpec) -> WantedDevices:
    """The devices that a study file asks for."""
    num_trials = 1 if spec.pool == "inline" else spec.resources.max_concurrent
    is_alone = spec.pool == "inline" and spec.engine.name != "ray" and spec.engine.scheduler is None
    several_gpus = (spec.resources.gpus_per_trial or 0) > 1
    return WantedDevices(
        gpus_per_trial=spec.resources.gpus_per_trial,
        num_trials=num_trials,
        needs_cluster=not is_alone or several_gpus,
    )


def num_gpus_needed(wanted: WantedDevices, num_gpus: int) -> float:
    """GPUs that a study needs in a pool of `num_gpus`: a share below 1 or a whole number.

    A study that does not limit its trials uses all GPUs. A share of a trial that several trials do not fit into one GPU
    is rounded up to whole GPUs.
    """
    per_trial = wanted.gpus_per_trial
    if per_trial == 0:
        return 0.0
    if wanted.num_trials is None:
        return float(max(num_gpus, math.ceil(per_trial or 0)))
    total = (1.0 if per_trial is None else per_trial) * wanted.num_trials
    if total <= 1 - _FREE:
        return total
    return float(max(min(math.ceil(total - _FREE), num_gpus), math.ceil(per_trial or 0)))


class Placing:
    """Chooses devices during one claim, in which submissions come in the order of their turn.

    Args:
        pool: The pool.
        absence: Why the cluster of the pool cannot be used now; `None` if it can.
    """

    def __init__(self, pool: DevicePool, absence: str | None = None) -> None:
        self._pool, self._absence = pool, absence
        self._first: str | None = None  # the first study that waits for GPUs: later ones must not overtake it

    def __call__(self, waiting: SubmissionRecord, running: Sequence[SubmissionRecord]) -> Placement | PoolFull | str:
        """The devices of a submission, or the reason why it waits."""
        pool = self._pool
        if len(running) >= pool.max_studies:
            return PoolFull(pool.name, pool.max_studies)
        if self._absence is not None and waiting.wants.needs_cluster:
            return self._absence
        if pool.num_gpus is None:
            return Placement({})
        needed = num_gpus_needed(waiting.wants, pool.num_gpus)
        if needed == 0:
            return Placement({})
        if needed > pool.num_gpus:
            return f"waits for {needed:g} GPUs, but {pool.name} has {pool.num_gpus}"
        if self._first is not None:
            return f"waits for GPUs behind study {self._first}"
        taken = sum(one.num_gpus for one in running)
        if pool.is_cluster:
            devices = _of_cluster(needed, pool.num_gpus - taken)
        else:
            devices = _of_machine(needed, pool.num_gpus, running)
        if devices is None:
            self._first = waiting.name
            free = max(pool.num_gpus - taken, 0.0)
            return f"waits for {needed:g} GPUs on {pool.name}, of which {free:g} of {pool.num_gpus} are free"
        return Placement(devices)


def _of_cluster(needed: float, free: float) -> dict[str, float] | None:
    return {CLUSTER: needed} if needed <= free + _FREE else None


def _of_machine(needed: float, num_gpus: int, running: Sequence[SubmissionRecord]) -> dict[str, float] | None:
    free = {str(index): 1.0 for index in range(num_gpus)}
    for one in running:
        for index, share in (one.devices or {}).items():
            free[index] = free.get(index, 0.0) - share
    if needed < 1:  # the fullest GPU with enough room, so that whole ones stay free
        fitting = [index for index, share in free.items() if share >= needed - _FREE]
        return {min(fitting, key=lambda index: free[index]): needed} if fitting else None
    whole = [index for index, share in free.items() if share >= 1 - _FREE]
    return dict.fromkeys(whole[: int(needed)], 1.0) if len(whole) >= needed else None


def device_environment(
    devices: Mapping[str, float], pool: DevicePool, environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables that show a driver its GPUs only.

    Args:
        devices: The GPUs of the study.
        pool: The pool.
        environment: The environment of this process, which may itself see some GPUs only.
    """
    if pool.is_cluster or not pool.num_gpus:
        return {}
    visible = environment[_VISIBLE].split(",") if environment.get(_VISIBLE) else [str(i) for i in range(pool.num_gpus)]
    return {_VISIBLE: ",".join(visible[int(index)] for index in sorted(devices, key=int))}
