"""Decides a worker's share of its machine: CPU cores, and a share of a GPU according to the memory it needs."""

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.engines.ray.cluster import RayCluster
from search_spaces.base import ImageTask
from trainers.config import Configuration, Precision, ReplayTask, Resources, Task, TrainTask
from trainers.hardware.host import GIB
from trainers.hardware.resources import Devices, TrialMemory, has_room, largest_pack, plan_resources
from trainers.tasks.dry_run import (
    DryRunError,
    MemoryKey,
    describe_devices_apart,
    measure_apart,
    measure_classes,
    memory_key,
)

_SMALL_GPU_SHARE = 0.25
"""GPU share of tasks that do not train."""
_LITTLE_GIB_PER_CORE = 3.0
"""With more main memory per core than this, one training per core is assumed to fit, without measuring."""


class Share(NamedTuple):
    """A worker's share of its machine."""

    num_cpus: float = 1
    num_gpus: float = 0


class Measured(NamedTuple):
    """Results of dry runs on a node of the cluster."""

    devices: Devices
    memory: dict[MemoryKey, TrialMemory]


class SharePlanner:
    """Decides the share of each task. Trainings are measured once per class of topologies, before the first one runs.

    Args:
        cluster: The cluster that will run the workers.
        limits: Limits set by the user.
    """

    def __init__(self, cluster: RayCluster, limits: Resources) -> None:
        self._cluster = cluster
        self._limits = limits
        self._measured: Measured | None = None
        self._image_task: ImageTask | None = None
        self.num_trainings: int | None = None
        """Maximum number of trainings of the search; fewer than there are cores share all cores. `None` if unknown."""

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        """Measure the memory of trainings like these, if memory limits the number of concurrent trainings."""
        if not configurations or not self.must_measure():
            return
        import ray

        from trainers.data.images import load_images  # imports torch
        from trainers.data.mapping import is_mapped

        data = load_images(configurations[0].data)
        self._image_task = data.task
        known = self._measured.memory if self._measured else {}
        measure = ray.remote(measure_on_node).options(num_cpus=1, num_gpus=1 if self._uses_gpus() else 0)
        num_images = len(data.train) + len(data.validation)
        if not self._uses_gpus() and is_mapped(data.train.images):
            num_images = 0  # they stay in a file that all workers share
        self._measured = self._cluster.call(
            lambda: ray.get(measure.remote(list(configurations), data.task, num_images, known, self._limits.precision))
        )

    def __call__(self, task: Task) -> Share:
        cpus = self._limits.cpus_per_trial or 1
        if isinstance(task, ReplayTask):
            return Share(1, 0)
        if not isinstance(task, TrainTask):
            share = self._limits.gpus_per_trial
            return Share(cpus, min(_SMALL_GPU_SHARE, share or _SMALL_GPU_SHARE) if self._uses_gpus() else 0)
        memory = self._memory(task)
        if self._uses_gpus() and self._limits.gpus_per_trial is None and memory is None:
            return Share(cpus, 1)  # the training could not be measured, so it gets a whole GPU
        try:
            size = self.pack_size(task)
            plan = plan_resources(self._devices(), memory, self._limits_of(size), pack_size=size)
        except ValueError:  # the training does not fit, and will fail with a message
            return Share(cpus, 1 if self._uses_gpus() else 0)
        return Share(plan.cpus, plan.gpu_fraction)

    def _limits_of(self, pack_size: int) -> Resources:
        """The user's limits, and no more places than there are trainings or packs."""
        most = self._limits.max_concurrent
        if self.num_trainings is None:
            return self._limits
        places = math.ceil(self.num_trainings / pack_size) or 1
        return self._limits.model_copy(update={"max_concurrent": places if most is None else min(most, places)})

    def pack_size(self, task: Task) -> int:
        """Largest pack for this training: as large as the user allows and memory holds."""
        most = self._limits.trials_per_pack
        if most == 1 or not isinstance(task, TrainTask):
            return 1
        memory = self._memory(task)
        if memory is None:  # a training that could not be measured may need all memory
            return most if self._measured is None else 1
        try:
            return min(most, largest_pack(self._devices(), memory, self._limits))
        except ValueError:
            return 1

    def _memory(self, task: TrainTask) -> TrialMemory | None:
        """The measured memory of a training; `None` if it was not measured."""
        if self._measured is None or self._image_task is None:
            return None
        return self._measured.memory.get(memory_key(task.configuration, self._image_task))

    def _uses_gpus(self) -> bool:
        return self._limits.gpus_per_trial != 0 and self._cluster.has_gpus()

    def must_measure(self) -> bool:
        """Whether `prepare` would measure. Idle workers should end first, because measuring needs their memory."""
        if self._uses_gpus():
            return self._limits.gpus_per_trial is None
        if self._limits.max_concurrent is not None or not self._cluster.is_local:
            return False
        from trainers.hardware.host import available_cores, available_memory_gib

        return available_memory_gib() < _LITTLE_GIB_PER_CORE * available_cores()

    def _devices(self) -> Devices:
        if self._measured is not None:
            return self._measured.devices
        from trainers.hardware.resources import Gpu

        nodes = [node for node in self._cluster.nodes() if node.num_cpus and (node.num_gpus or not self._uses_gpus())]
        smallest = min(nodes, key=lambda node: node.num_cpus)
        gpu = Gpu(name="GPU", total_gib=float("inf"), free_gib=float("inf"))
        count = int(smallest.num_gpus) if self._uses_gpus() else 0
        return Devices(cores=max(1, int(smallest.num_cpus)), memory_gib=float("inf"), gpus=(gpu,) * count)


def measure_on_node(
    configurations: Sequence[Configuration],
    image_task: ImageTask,
    num_images: int,
    known: dict[MemoryKey, TrialMemory],
    precision: Precision = "auto",
) -> Measured:
    """Dry-run trainings on this machine. Classes that cannot be measured are left out.

    Args:
        configurations: The trainings.
        image_task: Image size, channels and classes of the data.
        num_images: Number of images that a training keeps on its device, if they fit there.
        known: Classes that are already measured.
        precision: Number format of the trainings.
    """
    found, devices = dict(known), describe_devices_apart()
    num_bytes = num_images * image_task.in_channels * image_task.image_size**2
    if any(not has_room(num_bytes, gpu.free_gib * GIB) for gpu in devices.gpus):
        num_images = 0
    by_class: dict[MemoryKey, list[Configuration]] = {}
    for configuration in configurations:
        by_class.setdefault(memory_key(configuration, image_task), []).append(configuration)
    for alike in by_class.values():
        with contextlib.suppress(DryRunError):
            found = measure_classes(
                alike,
                image_task,
                lambda one: measure_apart(one, image_task, num_images=num_images, precision=precision),
                found,
            )
    return Measured(devices, found)
