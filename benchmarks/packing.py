"""Trials per hour of small trainings: packed, one after the other, and in several processes that share the device.

`python -m benchmarks.packing` takes a few minutes on two CPU cores, and uses a CUDA GPU if there is one. The trials are
the same in all three ways, including their random numbers. The times exclude starting processes and loading libraries.
On a GPU, the tables also give the seconds in which it was idle, as `nvidia-smi` samples it (each way should take some
seconds), and the memory of all processes together.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._gpu_use import GpuUse, forget_memory, watch_gpu
from benchmarks._machine import chosen_device, processor
from benchmarks._timing import print_table, save_report
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, TaskOutcome, TrainTask
from trainers.data.images import load_images
from trainers.hardware.devices import describe_device, describe_devices
from trainers.tasks.dry_run import peak_gib
from trainers.training.loop import train
from trainers.training.packed import train_packed
from trainers.training.reporting import SilentReporter

TOPOLOGIES = ("4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,4", "4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,16")
"""As-ViT with 25 and 372 thousand parameters: the smallest models benefit most."""
PACKED, APART, PROCESSES = "packed", "one after the other", "parallel processes"


def main() -> None:
    options = _options()
    devices, device = describe_devices(), chosen_device(options.device)
    torch.set_num_threads(options.threads or devices.cores)
    head = {
        "processor": processor(),
        "device": describe_device(device),
        "cores": devices.cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    print(
        f"{head['processor']}, {head['cores']} cores, {platform.system()}, torch {head['torch']}, on {head['device']}"
    )
    print(
        f"load average before the start {head['load']:.1f}; medians of {options.repeats} runs of {options.trials} "
        f"trials, {options.epochs} epochs of {len(load_images(_data(options)).train)} digits, "
        f"batch size {options.batch_size}"
    )
    report: dict[str, Any] = head | {name: getattr(options, name) for name in ("trials", "epochs", "batch_size")}
    threads = max(1, torch.get_num_threads() // options.workers)
    with watch_gpu(device) as gpu, _workers(options.workers, threads) as pool:
        for topology in options.topologies:
            rows = _compare(topology, options, device, pool, gpu)
            report[topology] = rows
            print_table(f"{topology}, {options.augmentation} augmentation", rows, medians=False)
            save_report(options.json, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--topologies", nargs="+", default=list(TOPOLOGIES), metavar="TEXT", help="As-ViT, in text form"
    )
    parser.add_argument("--trials", type=int, default=16, help="number of trainings, all in one pack (16)")
    parser.add_argument("--workers", type=int, default=4, help="number of processes that share the device (4)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each training (2)")
    parser.add_argument("--images", type=int, default=600, help="number of training and validation images (600)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (64)")
    parser.add_argument("--augmentation", default="shift", help="augmentation of the images (shift)")
    parser.add_argument("--threads", type=int, default=None, help="total number of CPU threads (number of cores)")
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs of each way (3)")
    parser.add_argument("--device", help="cpu, cuda or mps (the best one)")
    parser.add_argument("--quick", action="store_true", help="the smallest topology, 4 trials in 2 processes, one run")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    if options.quick:
        options.topologies, options.trials, options.workers = options.topologies[:1], 4, 2
        options.epochs, options.images, options.repeats = 1, 200, 1
    return options


class _Run(NamedTuple):
    """One run of all trials."""

    wall_s: float
    cpu_s: float
    """CPU time of all threads and processes."""
    outcomes: Sequence[TaskOutcome]
    memory_gib: float | None
    """Memory of all processes on the GPU; `None` on a CPU."""
    idle_s: float | None = None
    """Seconds in which the GPU was idle; `None` if that was not measured."""


def _compare(
    topology: str, options: argparse.Namespace, device: torch.device, pool: Pool, gpu: GpuUse | None
) -> list[dict[str, Any]]:
    ways: dict[str, Callable[[list[TrainTask]], _Run]] = {
        PACKED: lambda tasks: _here(lambda: _pack(tasks, device), device),
        APART: lambda tasks: _here(lambda: [_train(task, device) for task in tasks], device),
        f"{options.workers} {PROCESSES}": lambda tasks: _elsewhere(tasks, pool, device),
    }
    runs: dict[str, list[_Run]] = {way: [] for way in ways}
    for repeat in range(options.repeats + 1):
        for way, run in ways.items():
            with _tasks(topology, options) as tasks:
                start = time.monotonic()
                done = run(tasks[: options.workers] if repeat == 0 else tasks)
                use = gpu.between(start, time.monotonic()) if gpu is not None else None
            if repeat:  # the first run loads libraries
                runs[way].append(done._replace(idle_s=None if use is None else use.idle_s))
    expected = runs[APART][0].outcomes
    base = statistics.median(run.wall_s for run in runs[APART])
    rows = []
    for way, found in runs.items():
        times = [run.wall_s for run in found]
        losses = zip(found[0].outcomes, expected, strict=True)
        rows.append(
            {
                "way": way,
                "trials per hour": round(options.trials * 3600 / statistics.median(times)),
                "times as fast": base / statistics.median(times),
                "s": statistics.median(times),
                "spread s": max(times) - min(times),
                "CPU s": statistics.median(run.cpu_s for run in found),
                "loss off by": max(abs(one.metrics["val_loss"] - two.metrics["val_loss"]) for one, two in losses),
            }
        )
        if device.type == "cuda":
            idle = [run.idle_s for run in found if run.idle_s is not None]
            rows[-1]["GPU idle s"] = statistics.median(idle) if idle else "not measured"
            rows[-1]["GPU GiB"] = max(run.memory_gib or 0.0 for run in found)
    return rows


def _data(options: argparse.Namespace) -> DataConfig:
    return DataConfig(source="digits", max_images=options.images)


@contextmanager
def _tasks(topology: str, options: argparse.Namespace) -> Iterator[list[TrainTask]]:
    """Trials that differ in numbers only, with temporary folders."""
    folder = Path(tempfile.mkdtemp())
    recipe = {"batch_size": options.batch_size, "augmentation": options.augmentation}
    try:
        yield [
            TrainTask(
                configuration=Configuration(
                    data=_data(options),
                    topology=f"as-vit:{topology}",
                    recipe=Recipe.model_validate(
                        recipe | {"learning_rate": 1e-3 * 1.2**number, "label_smoothing": 0.01 * number}
                    ),
                    epochs=options.epochs,
                    seed=number,
                ),
                folder=folder / str(number),
            )
            for number in range(options.trials)
        ]
    finally:
        shutil.rmtree(folder)


def _pack(tasks: list[TrainTask], device: torch.device) -> Sequence[TaskOutcome]:
    data = load_images(tasks[0].configuration.data)
    outcomes = dict(train_packed(tasks, data, [SilentReporter() for _ in tasks], device))
    return [outcomes[position] for position in range(len(tasks))]


def _train(task: TrainTask, device: torch.device) -> TaskOutcome:
    return train(task, load_images(task.configuration.data), SilentReporter(), device)


def _here(work: Callable[[], Sequence[TaskOutcome]], device: torch.device) -> _Run:
    forget_memory(device)
    wall, cpu = time.perf_counter(), time.process_time()
    outcomes = work()
    return _Run(time.perf_counter() - wall, time.process_time() - cpu, outcomes, _memory_gib(device))


def _elsewhere(tasks: list[TrainTask], pool: Pool, device: torch.device) -> _Run:
    wall = time.perf_counter()
    results = pool.map(partial(_timed, device=str(device)), tasks, chunksize=1)
    elapsed = time.perf_counter() - wall
    peaks: dict[int, float] = {}
    for one in results:
        if one.memory_gib is not None:
            peaks[one.process] = max(peaks.get(one.process, 0.0), one.memory_gib)
    memory_gib = sum(peaks.values()) if peaks else None
    return _Run(elapsed, sum(one.cpu_s for one in results), [one.outcome for one in results], memory_gib)


class _Timed(NamedTuple):
    """One training in a process of the pool."""

    outcome: TaskOutcome
    cpu_s: float
    process: int
    memory_gib: float | None


def _timed(task: TrainTask, device: str) -> _Timed:
    place = chosen_device(device)
    forget_memory(place)
    cpu = time.process_time()
    outcome = _train(task, place)
    return _Timed(outcome, time.process_time() - cpu, os.getpid(), _memory_gib(place))


def _memory_gib(device: torch.device) -> float | None:
    return peak_gib(device) if device.type == "cuda" else None


@contextmanager
def _workers(count: int, threads: int) -> Iterator[Pool]:
    """A pool of processes for trials."""
    pool = multiprocessing.get_context("spawn").Pool(count, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


if __name__ == "__main__":
    main()
