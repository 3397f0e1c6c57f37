"""Which device a worker computes on, and where its random numbers come from."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainers.hardware.host import GIB, available_cores, available_memory_gib
from trainers.hardware.resources import Devices, Gpu

_MACS_PER_THREAD = 10**9
"""Work of one step below which a further CPU thread costs more in waiting than it brings on a busy machine."""


def pick_device() -> torch.device:
    """The current CUDA GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        # TF32 where bf16 autocast leaves float32 (the head's loss, the evaluation of saved weights).
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def describe_device(device: torch.device) -> str:
    """The kind of device, such as `cpu` or `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe_devices() -> Devices:
    """What this machine offers to this process. Looking at a GPU opens a CUDA context on it (about half a GiB).

    Hence a driver asks a process of its own: `trainers.tasks.dry_run.describe_devices_apart`.
    """
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Gpu(name=torch.cuda.get_device_name(index), total_gib=total / GIB, free_gib=free / GIB))
    return Devices(
        cores=available_cores(),
        memory_gib=available_memory_gib(),
        gpus=tuple(gpus),
        has_mps=torch.backends.mps.is_available(),
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """While inside, float32 has all its digits on every device; a GPU's tensor cores would keep ten bits (TF32).

    Trainings do not mind. Scores do: the smallest eigenvalue of a kernel with a condition number of 1,000 gets lost.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def cpu_threads(step_macs: float) -> Iterator[None]:
    """While inside, torch uses no more CPU threads than a step of `step_macs` multiply-accumulates can feed.

    Threads of a tiny step spin while they wait for each other: with another process on the same cores, a training that
    takes 11 s with one thread was seen to take 169 s with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(useful_threads(step_macs, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def useful_threads(step_macs: float, available: int) -> int:
    """How many of the `available` CPU threads a step of `step_macs` multiply-accumulates can feed, at least 1."""
    return max(1, min(available, int(step_macs // _MACS_PER_THREAD)))


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU that has it; everything in float32 elsewhere."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed below 2^63 for one purpose: `derive_seed(7, "order", epoch)`. Different arguments give unrelated seeds."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))
