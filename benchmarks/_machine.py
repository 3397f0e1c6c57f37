"""Measures the rates of the machine, and the work of a computation."""

import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._timing import measure
from plugins.proxies.repeats import on_all_cores
from trainers.hardware.devices import autocast, pick_device


class Rates(NamedTuple):
    """Measured rates; on a CPU the total of all threads, each with its own memory."""

    gemm_gflops: float
    """Products of 1024 x 1024 matrices, in the default dtype."""
    copy_gb_per_s: float
    """Copying 128 MiB; bytes read plus bytes written."""
    cached_gb_per_s: float
    """Copying 512 KiB, which fit in a core's cache; on a GPU, this measures the cost of starting a kernel."""


class Work(NamedTuple):
    """Work of one call."""

    gflops: float
    """Operations of matrix products and convolutions; a multiply-accumulate counts as two."""
    gigabytes: float
    """Data read and written by all operations, as if no result stayed in registers."""


def processor() -> str:
    """Name of the CPU as reported by the system."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def waiting_for(device: torch.device) -> Callable[[], None]:
    """A function that waits until a device has finished all its work."""
    return (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))


def chosen_device(name: str | None) -> torch.device:
    """The device of a name such as `cuda`, or the best one, prepared as for trials.

    Ends the program if this machine has no such device.
    """
    best = pick_device()
    if name is None or torch.device(name).type == best.type:
        return best
    if torch.device(name).type != "cpu":
        sys.exit(f"error: --device must be cpu or the accelerator of this machine ({best.type}), but got {name}.")
    return torch.device("cpu")


def trains_in(device: torch.device) -> torch.dtype:
    """Number format of the matrix products of trainings on a device."""
    with autocast(device):
        return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the peak: the best of up to ten products of large matrices, in 10^12 operations per second.

    The matrices have 8,192 rows and columns on a GPU, and 1,024 on a CPU, whose rate is that of all threads together.
    One product is enough if it takes more than a second, as in bfloat16 on CPUs without instructions for it.
    """
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = waiting_for(device)
    fastest = min(measure(lambda: torch.mm(left, right), 1, wait=wait).seconds)
    if fastest < 1:
        fastest = min(measure(lambda: torch.mm(left, right), 10, warm=True, wait=wait).seconds)
    return 2 * size**3 / fastest / 1e12


def measure_rates(device: torch.device) -> Rates:
    """Measure each rate three times and return the best."""
    left, right = torch.randn(2, 1024, 1024, device=device)
    return Rates(
        _rate(lambda: lambda: torch.mm(left, right), device, count=20, size=2 * 1024**3),
        _rate(lambda: _copying(2**25, device), device, count=5, size=2 * 2**27),
        _rate(lambda: _copying(2**17, device), device, count=2000, size=2 * 2**19),
    )


def _copying(numbers: int, device: torch.device) -> Callable[[], Tensor]:
    source, target = torch.zeros(2, numbers, device=device)
    return lambda: target.copy_(source)


def _rate(make: Callable[[], Callable[[], Tensor]], device: torch.device, *, count: int, size: int) -> float:
    """Rate in billions per second, from `count` calls of `size` units in each thread (one thread for a GPU)."""

    def repeat(action: Callable[[], Tensor]) -> None:
        for _ in range(count):
            action()

    actions = [make() for _ in range(torch.get_num_threads() if device.type == "cpu" else 1)]
    best, wait = float("inf"), waiting_for(device)
    for _ in range(3):
        wait()
        start = time.perf_counter()
        list(on_all_cores(repeat, actions, device=device.type))
        wait()
        best = min(best, time.perf_counter() - start)
    return len(actions) * count * size / best / 1e9


def count_work(call: Callable[[], Any]) -> Work:
    """Count the work of one call, on one thread."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    in_place = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), _product_flops)
    try:
        with FlopCounterMode(display=False, custom_mapping=in_place) as flops, _Traffic() as traffic:
            call()
    finally:
        torch.set_num_threads(num_threads)
    return Work(flops.get_total_flops() / 1e9, traffic.num_bytes / 1e9)


def _product_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    """FLOPs of `addmm_` and `baddbmm_` by operand shapes; torch's counter lacks these in-place variants."""
    return 2 * math.prod(left) * right[-1]


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of the operands and results of all operations; views are free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            operands = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
            results = [value for value in (out if isinstance(out, tuple) else (out,)) if isinstance(value, Tensor)]
            seen = {(value.data_ptr(), value.shape): value for value in operands}
            moved = [*seen.values(), *results]
            self.num_bytes += sum(value.numel() * value.element_size() for value in moved)
        return out


def resident_mib() -> float:
    """Memory of this process in MiB; NaN where the system does not tell it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
