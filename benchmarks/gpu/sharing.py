"""How many trainings share a GPU by the measure of a dry run, and the memory that they really use together.

`python -m benchmarks.gpu.sharing`: for each size, a dry run measures a training; then as many as are planned for this
machine train at the same time, each in its own process. On a GPU, `nvidia-smi` tells the memory of all of them; on a
CPU, it is the sum of their peaks.
"""

import argparse
import math
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._gpu_use import watch_gpu
from benchmarks._machine import chosen_device
from benchmarks._timing import print_table, save_report
from benchmarks.training import SIZES
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, Resources, TrainTask
from trainers.data.images import load_images
from trainers.data.sources import noise_task
from trainers.hardware.devices import describe_device
from trainers.hardware.resources import Devices, TrialMemory, plan_resources
from trainers.tasks.dry_run import describe_devices_apart, measure_apart, peak_gib
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter

_START_S = 60.0
"""Timeout for the start of all processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda (the best one)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1.5 M", "23 M"], help="number of parameters")
    parser.add_argument("--batch-size", type=int, default=512, help="images per step (512)")
    parser.add_argument("--images", type=int, default=4096, help="training and validation images (4096)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each training (4)")
    parser.add_argument("--most", type=int, default=8, help="trainings to run at the same time, at most (8)")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    device = chosen_device(options.device)
    report: dict[str, Any] = {"device": describe_device(device), "rows": []}
    for name in ("batch_size", "images", "epochs"):
        report[name] = getattr(options, name)
    devices = describe_devices_apart()
    for size in options.sizes:
        report["rows"].append(_measure(size, options, device, devices))
        save_report(options.json, report)
    print_table(f"trainings that share {report['device']}", report["rows"], medians=False)


def _measure(size: str, options: argparse.Namespace, device: torch.device, devices: Devices) -> dict[str, Any]:
    configuration = Configuration(
        data=DataConfig(source="noise", image_size=32, max_images=options.images),
        topology=SIZES[size],
        recipe=Recipe(batch_size=options.batch_size),
        epochs=options.epochs,
        seed=0,
    )
    memory = measure_apart(configuration, noise_task(configuration.data), num_images=options.images)
    here = plan_resources(devices, memory).max_concurrent
    count = min(here, options.most)
    seconds, used = _train_together(configuration, count, device)
    return {
        "parameters": size,
        "dry run, GiB": memory.of(1),
        "fit by memory": _fit_by_memory(devices, memory),
        "planned here": here,
        "run": count,
        "planned, GiB": count * memory.of(1),
        "used, GiB": "not measured" if used is None else used,
        "images/s": round(count * options.epochs * len(load_images(configuration.data).train) / seconds),
    }


def _fit_by_memory(devices: Devices, memory: TrialMemory) -> int:
    """Number of trainings that would run at the same time if there were enough cores."""
    return plan_resources(devices.model_copy(update={"cores": 10_000}), memory, Resources()).max_concurrent


class _Trained(NamedTuple):
    seconds: float
    peak_gib: float


def _train_together(configuration: Configuration, count: int, device: torch.device) -> tuple[float, float | None]:
    """Seconds of the slowest of `count` trainings that begin together, and memory of all in GiB, `None` if unknown."""
    context = multiprocessing.get_context("spawn")
    with watch_gpu(device) as gpu:
        before, started = 0.0 if gpu is None else gpu.memory_gib(), time.monotonic()
        barrier, results = context.Barrier(count), context.SimpleQueue()
        processes = [
            context.Process(target=_train_at_once, args=(configuration, number, str(device), barrier, results))
            for number in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed:
            raise RuntimeError(f"all trainings must end, but {len(failed)} of {count} failed; see their output above.")
        found: list[_Trained] = [results.get() for _ in processes]
        use = None if gpu is None else gpu.between(started, time.monotonic())
    if device.type == "cpu":
        return max(one.seconds for one in found), math.fsum(one.peak_gib for one in found)
    return max(one.seconds for one in found), None if use is None else use.memory_gib - before


def _train_at_once(configuration: Configuration, seed: int, device: str, barrier: Barrier, results: Any) -> None:
    """Train in this process, together with others."""
    place, data = chosen_device(device), load_images(configuration.data)
    torch.zeros(1, device=place)
    barrier.wait(_START_S)
    with tempfile.TemporaryDirectory() as folder:
        task = TrainTask(configuration=configuration.model_copy(update={"seed": seed}), folder=Path(folder))
        started = time.perf_counter()
        outcome = train(task, data, SilentReporter(), place)
    if outcome.state != "complete":
        raise RuntimeError(f"a training must end as complete, but it is {outcome.state}: {outcome.reason}")
    results.put(_Trained(time.perf_counter() - started, peak_gib(place)))


if __name__ == "__main__":
    main()
