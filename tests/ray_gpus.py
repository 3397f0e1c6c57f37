"""Declared GPUs for tests: the memory that they would have, and trial workers that name the GPUs they got."""

import os
import time
from collections.abc import Sequence

import ray

from orchestrator.engines.ray.trial_resources import Measured
from search_spaces.base import ImageTask
from tests.ray_tasks import one_after_another, slow
from trainers.config import Configuration, Precision, Task, TaskOutcome, TrainTask
from trainers.hardware.resources import Devices, Gpu, TrialMemory
from trainers.tasks.dry_run import MemoryKey, memory_key
from trainers.training.reporting import Reporter

LARGE, SMALL = "accelerator_type:LARGE", "accelerator_type:SMALL"
_MEETING_S = 300.0


def measure_declared(
    configurations: Sequence[Configuration],
    image_task: ImageTask,
    num_images: int,
    known: dict[MemoryKey, TrialMemory],
    precision: Precision,
) -> Measured:
    """In place of dry runs: a process takes 1 GiB, and each of its trainings 3 GiB more."""
    memory = TrialMemory(process_gib=1, training_gib=3)
    return Measured(declared_devices(), {memory_key(one, image_task): memory for one in configurations})


def declared_devices() -> Devices:
    """A GPU of 40 GiB on a node with `LARGE` GPUs, of 7.5 GiB on others."""
    is_large = LARGE in ray.get_runtime_context().get_assigned_resources()
    gpu = Gpu(name="GPU", total_gib=40, free_gib=40 if is_large else 7.5)
    return Devices(cores=4, memory_gib=64, gpus=(gpu,))


def on_gpus(task: Task, reporter: Reporter) -> TaskOutcome:
    """Like `slow`, but it begins when as many have come as the file `together` says, and writes down its GPUs."""
    assert isinstance(task, TrainTask)
    folder = task.folder.parent
    where = f"{ray.get_runtime_context().get_node_id()} {os.environ['CUDA_VISIBLE_DEVICES']}"
    (folder / f"gpus-{task.folder.name}").write_text(where)
    deadline = time.monotonic() + _MEETING_S
    while len(list(folder.glob("gpus-*"))) < int((folder / "together").read_text()):
        if time.monotonic() > deadline:
            return TaskOutcome(state="failed", error="late", reason="the others did not come")
        time.sleep(0.05)
    return slow(task, reporter)


packed_on_gpus = one_after_another(on_gpus)
