"""Decides a worker's share of its machine: CPU cores, and a share of a GPU according to the memory it needs."""

import contextlib
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.placement import Node, bundles, num_ranks
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


_ANSWER_S = 120.0
"""Time to wait for a free GPU of each further kind."""
_LITTLE = 0.001

_logger = logging.getLogger(__name__)


class Share(NamedTuple):
    """A worker's share of its machine."""

    num_cpus: float = 1
    num_gpus: float = 0

    @property
    def num_ranks(self) -> int:
        """Number of processes that train together."""
        return num_ranks(self.num_gpus)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The resources of each process, as Ray names them."""
        return bundles(self.num_cpus, self.num_gpus)


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
        from trainers.data.images import load_images  # imports torch
        from trainers.data.mapping import is_mapped

        data = load_images(configurations[0].data)
        self._image_task = data.task
        num_images = len(data.train) + len(data.validation)
        if not self._uses_gpus() and is_mapped(data.train.images):
            num_images = 0  # they stay in a file that all workers share
        self._measured = self._cluster.call(lambda: self._measure(list(configurations), data.task, num_images))

    def _measure(self, configurations: list[Configuration], image_task: ImageTask, num_images: int) -> Measured:
        """Dry-run trainings on one node, and find the GPU with the least free memory among one node of each kind."""
        import ray

        first, *others = (self._cluster.gpu_kinds() if self._uses_gpus() else ()) or ("",)
        num_gpus = 1 if self._uses_gpus() else 0
        known = self._measured.memory if self._measured else {}
        measure = ray.remote(measure_on_node).options(num_cpus=1, num_gpus=num_gpus, resources=_part_of(first))
        measuring = measure.remote(configurations, image_task, num_images, known, self._limits.precision)
        asked = {}
        for kind in others:
            describe = ray.remote(describe_devices_apart).options(num_cpus=1, num_gpus=1, resources=_part_of(kind))
            asked[describe.remote()] = kind
        found: Measured = ray.get(measuring)
        gpus = list(found.devices.gpus)
        if asked:
            answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
            gpus += [gpu for devices in ray.get(answered) for gpu in devices.gpus]
            for task in silent:
                ray.cancel(task, force=True)
                _logger.warning(
                    "The GPUs of kind %s did not become free in %g seconds, so their memory is not considered.",
                    asked[task],
                    _ANSWER_S,
                )
        least = sorted(gpus, key=lambda gpu: gpu.free_gib)[:1]
        return found._replace(devices=found.devices.model_copy(update={"gpus": tuple(least)}))

    def __call__(self, task: Task) -> Share:
        cpus = self._limits.cpus_per_trial or 1
        if isinstance(task, ReplayTask):
            return Share(1, 0)
        if not isinstance(task, TrainTask):
            share = self._limits.gpus_per_trial
            return Share(cpus, min(_SMALL_GPU_SHARE, share or _SMALL_GPU_SHARE) if self._uses_gpus() else 0)
        num_gpus = self._limits.gpus_per_trial or 0
        if num_gpus > 1:
            return Share(self._limits.cpus_per_trial or self._cores_per_gpu() * num_gpus, num_gpus)
        memory = self._memory(task)
        if self._uses_gpus() and self._limits.gpus_per_trial is None and memory is None:
            return Share(cpus, 1)  # the training could not be measured, so it gets a whole GPU
        try:
            size = self.pack_size(task)
            plan = plan_resources(self._devices(), memory, self._limits_of(size), pack_size=size)
        except ValueError:  # the training fails with a message, or no node has so many GPUs, and the study says so
            return Share(cpus, max(1, self._limits.gpus_per_trial or 1) if self._uses_gpus() else 0)
        return Share(plan.cpus, plan.gpu_fraction)

    def _cores_per_gpu(self) -> float:
        """CPU cores for each GPU of a node, whole ones if there are enough; 1 if no node has a GPU yet."""
        each = [node.num_cpus / node.num_gpus for node in self._cluster.nodes() if node.num_gpus]
        least = min(each, default=1.0)
        return least if least < 1 else math.floor(least)

    def _limits_of(self, pack_size: int) -> Resources:
        """The user's limits for one node, and no more places than there are trainings or packs for it."""
        most = [] if self._limits.max_concurrent is None else [self._limits.max_concurrent]
        if self.num_trainings is not None:
            most.append(math.ceil(self.num_trainings / pack_size) or 1)
        if not most:
            return self._limits
        nodes = self._nodes() if self._uses_gpus() else ()
        part = self._usual_node().num_gpus / sum(node.num_gpus for node in nodes) if nodes else 1.0
        return self._limits.model_copy(update={"max_concurrent": math.ceil(min(most) * part)})

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

    def _nodes(self) -> list[Node]:
        """The nodes that train."""
        return [node for node in self._cluster.nodes() if node.num_cpus and (node.num_gpus or not self._uses_gpus())]

    def _usual_node(self) -> Node:
        """The node for which shares are computed: with the fewest cores per GPU, so that all GPUs of others work too.

        With more trials per GPU, Ray would fill one GPU of the others before it uses the next.
        """
        if self._uses_gpus():
            return min(self._nodes(), key=lambda node: node.num_cpus / node.num_gpus)
        return min(self._nodes(), key=lambda node: node.num_cpus)

    def _devices(self) -> Devices:
        """The devices of a node. A dry run sees only one of its GPUs."""
        measured = None if self._measured is None else self._measured.devices
        if measured is not None and not (self._uses_gpus() and measured.gpus):
            return measured
        from trainers.hardware.resources import Gpu

        node, unlimited = self._usual_node(), float("inf")
        cores, count = max(1, int(node.num_cpus)), int(node.num_gpus) if self._uses_gpus() else 0
        if measured is not None:
            return measured.model_copy(update={"cores": cores, "gpus": measured.gpus[:1] * count})
        gpu = Gpu(name="GPU", total_gib=unlimited, free_gib=unlimited)
        return Devices(cores=cores, memory_gib=unlimited, gpus=(gpu,) * count)


def _part_of(kind: str) -> dict[str, float]:
    """Resources that place a task on a node with GPUs of that kind."""
    return {kind: _LITTLE} if kind else {}


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
