"""Watches how much of a GPU is used, by all processes together, as `nvidia-smi` samples it."""

import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from trainers.hardware.peak_memory import forget_peak

_EVERY_MS = 50
_LAG_S = 0.4
"""A sample of `nvidia-smi` covers at least the last sixth of a second, so the first ones belong to the time before."""
_START_S = 10.0


class Use(NamedTuple):
    """Use of a GPU during some time."""

    idle_s: float
    """Seconds without a running kernel."""
    memory_gib: float
    """Largest memory that all processes together had."""


class _Sample(NamedTuple):
    at: float
    busy: float
    memory_gib: float


class GpuUse:
    """Samples of the use of a GPU, since `watch_gpu` began."""

    def __init__(self) -> None:
        self._samples: list[_Sample] = []
        self.began = threading.Event()

    def read(self, line: str) -> None:
        """Note a line of `nvidia-smi`: busy time in percent and memory in MiB; other lines are ignored."""
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 2 and all(field.isdigit() for field in fields):
            self._samples.append(_Sample(time.monotonic(), int(fields[0]) / 100, int(fields[1]) / 1024))
            self.began.set()

    def memory_gib(self) -> float:
        """Memory that all processes have now."""
        return self._samples[-1].memory_gib

    def between(self, start: float, end: float) -> Use | None:
        """Use between two times of `time.monotonic`; `None` if that was too short for a sample."""
        found = [sample for sample in list(self._samples) if start + _LAG_S <= sample.at <= end]
        if not found:
            return None
        busy = statistics.fmean(sample.busy for sample in found)
        return Use((end - start) * (1 - busy), max(sample.memory_gib for sample in found))


def forget_memory(device: torch.device) -> None:
    """Free what torch keeps for later, and begin to measure the peak of this process."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    forget_peak(device)


@contextmanager
def watch_gpu(device: torch.device) -> Iterator[GpuUse | None]:
    """Watch a GPU inside the context. If that is impossible, print the reason and give `None`."""
    if device.type != "cuda":
        print(f"idle time and memory of a GPU are not measured on {device.type}")
        yield None
        return
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    with watch_by_name(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}") as use:
        yield use


@contextmanager
def watch_by_name(name: str) -> Iterator[GpuUse | None]:
    """Watch the GPU that `nvidia-smi` knows by a name."""
    program = shutil.which("nvidia-smi")
    if program is None:
        print("idle time and memory of the GPU are not measured: nvidia-smi is not on the PATH")
        yield None
        return
    query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    command = [program, f"--id={name}", *query, f"--loop-ms={_EVERY_MS}"]
    use = GpuUse()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said: list[str] = []

        def read(lines: Iterator[str]) -> None:
            for line in lines:
                said.append(line.strip())
                del said[:-1]
                use.read(line)

        reader = threading.Thread(target=read, args=(iter(process.stdout),), daemon=True)
        reader.start()
        try:
            if use.began.wait(_START_S):
                yield use
            else:
                last = (said or ["it prints nothing"])[-1]
                print(f"idle time and memory of the GPU are not measured: {' '.join(command)} says: {last}")
                yield None
        finally:
            process.terminate()
            reader.join(_START_S)
