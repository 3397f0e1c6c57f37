"""The device that a worker computes on, its precision and threads, and its random seeds."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from trainers.config import Precision
from trainers.hardware.host import GIB, available_cores, available_memory_gib
from trainers.hardware.resources import Devices, Gpu, has_room

logger = logging.getLogger(__name__)

WITHOUT_FLOAT64 = {"mps"}
"""Types of devices that lack float64."""
_MACS_PER_THREAD = 10**9
"""Work per step that justifies one more CPU thread; with less, waiting for other threads costs more than it saves."""


def pick_device(*, needs_float64: bool = False) -> torch.device:
    """The current CUDA GPU if there is one, else Apple's GPU, else the CPU.

    Args:
        needs_float64: Whether the work needs float64, which Apple's GPU lacks. Training does not: see `summable`.
    """
    if torch.cuda.is_available():
        # TF32 for operations that bf16 autocast leaves in float32 (the loss, the evaluation of saved weights).
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available() and not needs_float64:
        return torch.device("mps")
    return torch.device("cpu")


def summable(values: torch.Tensor) -> torch.Tensor:
    """Values on a device that can sum in float64: their own, or the CPU for Apple's GPU, which lacks float64."""
    return values.cpu() if values.device.type in WITHOUT_FLOAT64 else values


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
    """Mixed precision for forward passes: bf16 or float32, as `computing_in` says."""
    enabled = _precision == "bfloat16" or (_precision == "auto" and device.type == "cuda")
    if enabled and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        enabled = False
        if _precision == "bfloat16":
            _say_once(f"{describe_device(device)} has no bfloat16, so float32 is used.")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in the dtype for losses: float64 stays, all others become float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Use a precision for all forward passes of this process, in every thread, inside the context.

    Args:
        precision: `auto` is bf16 on CUDA GPUs that have it, and float32 on other devices.
    """
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before


_precision: Precision = "auto"


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed below 2^63 for one purpose: `derive_seed(7, "order", epoch)`. Different arguments give unrelated seeds."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))
