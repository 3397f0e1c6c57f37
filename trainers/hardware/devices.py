"""The device that a worker computes on, its precision and threads, and its random seeds."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainers.hardware.host import GIB, available_cores, available_memory_gib
from trainers.hardware.resources import Devices, Gpu, has_room

_MACS_PER_THREAD = 10**9
"""Work per step that justifies one more CPU thread; with less, waiting for other threads costs more than it saves."""


def pick_device() -> torch.device:
    """The current CUDA GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        # TF32 for operations that bf16 autocast leaves in float32 (the loss, the evaluation of saved weights).
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def describe_device(device: torch.device) -> str:
    """Name of the device, such as `cpu` or `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe_devices() -> Devices:
    """The resources that are available to this process.

    Querying a GPU opens a CUDA context on it (about half a GiB), so a driver queries in a separate process with
    `trainers.tasks.dry_run.describe_devices_apart`.
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


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """Whether a device has room for images of a size. On a CPU, nothing is copied."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return has_room(num_bytes, free)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute with full float32 precision inside the context; tensor cores would otherwise use 10-bit mantissas (TF32).

    Training tolerates TF32. Scores do not: it loses the smallest eigenvalue of a kernel with condition number 1,000.
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
    """Limit torch inside the context to the CPU threads that a step of `step_macs` multiply-accumulates can use.

    The threads of a tiny step spin while waiting for each other. With another process on the same cores, a training
    that takes 11 s with one thread took 169 s with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(useful_threads(step_macs, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def useful_threads(step_macs: float, available: int) -> int:
    """Number of the `available` CPU threads, at least 1, that a step of `step_macs` multiply-accumulates can use."""
    return max(1, min(available, int(step_macs // _MACS_PER_THREAD)))


def autocast(device: torch.device) -> torch.autocast:
    """bf16 autocast on GPUs that support bf16; float32 on other devices."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed below 2^63 for one purpose: `derive_seed(7, "order", epoch)`. Different arguments give unrelated seeds."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))
