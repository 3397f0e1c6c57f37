"""What a training takes of memory, measured by a short one on noise, in a process of its own."""

import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from plugins.registry import create, load, parse_topology
from search_spaces.base import Costs, ImageTask
from search_spaces.ramps import largest
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration, TrainTask
from trainers.hardware.host import GIB
from trainers.hardware.resources import Devices, TrialMemory

if TYPE_CHECKING:
    import torch

    from trainers.data.images import ImageData

CUDA_CONTEXT_GIB = 0.6
"""What a process takes of a GPU besides its tensors: CUDA's context and the kernels of torch, cuBLAS and cuDNN."""

_STEPS = 2
"""In the second one gradients, optimizer state and activations are there together."""
_EVALUATED_PIXELS = 1 << 19
"""One batch of the evaluation."""
_SECONDS = 600.0


class DryRunError(RuntimeError):
    """A dry run failed; the message says why."""


class MemoryKey(NamedTuple):
    """Trainings that take about the same memory: up to twice as much, and the costliest of them is measured."""

    space: str
    parameters: int
    """Power of two that holds the topology's parameters."""
    macs: int
    """Power of two that holds its multiply-accumulates."""
    batch_size: int
    image_size: int


def memory_key(configuration: Configuration, task: ImageTask) -> MemoryKey:
    """The class of a training."""
    costs = _costs(configuration.topology, task)
    return MemoryKey(
        space=configuration.topology.partition(":")[0],
        parameters=math.ceil(math.log2(costs.parameters)),
        macs=math.ceil(math.log2(costs.macs)),
        batch_size=round(largest(configuration.recipe.batch_size)),
        image_size=task.image_size,
    )


def measure_classes(
    configurations: Iterable[Configuration],
    task: ImageTask,
    measure: Callable[[Configuration], TrialMemory],
    known: Mapping[MemoryKey, TrialMemory] | None = None,
) -> dict[MemoryKey, TrialMemory]:
    """The memory of each class of trainings, measured once, with the costliest topology that is given of it.

    Args:
        configurations: All trainings that there may be.
        task: Image size, channels and classes of the data.
        measure: Such as `measure_apart`.
        known: Classes that were measured before.
    """
    found = dict(known or {})
    costliest: dict[MemoryKey, Configuration] = {}
    for configuration in configurations:
        key = memory_key(configuration, task)
        if key not in found:
            best = costliest.setdefault(key, configuration)
            costliest[key] = max(best, configuration, key=lambda one: _costs(one.topology, task).macs)
    return found | {key: measure(configuration) for key, configuration in costliest.items()}


def measure_apart(
    configuration: Configuration, task: ImageTask, *, num_images: int, timeout_s: float = _SECONDS
) -> TrialMemory:
    """Dry-run a training in a child process, on the device that trials compute on.

    Args:
        configuration: What to train; its data are not read.
        task: Image size, channels and classes of the data.
        num_images: Training images, which each process keeps on its device.
        timeout_s: Longest wait.

    Raises:
        DryRunError: The training does not fit or fails otherwise, or takes too long.
    """
    question = {"configuration": configuration.model_dump(mode="json"), "task": task.model_dump(mode="json")}
    memory = TrialMemory.model_validate_json(_ask(json.dumps(question), timeout_s))
    images_gib = num_images * task.in_channels * task.image_size**2 / GIB
    return memory.model_copy(update={"process_gib": memory.process_gib + images_gib})


def describe_devices_apart(timeout_s: float = _SECONDS) -> Devices:
    """`trainers.hardware.devices.describe_devices` in another process: no CUDA context stays, torch is not imported.

    Raises:
        DryRunError: A device cannot be used.
    """
    return Devices.model_validate_json(_ask("{}", timeout_s))


def _ask(question: str, timeout_s: float) -> str:
    command = [sys.executable, "-m", "trainers.tasks.dry_run"]
    try:
        finished = subprocess.run(  # noqa: S603 - this module, with JSON as its input
            command, input=question, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DryRunError(
            f"a dry run must end within {timeout_s:.0f} s, but did not. Give `resources` by hand."
        ) from error
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or [f"it ended with status {finished.returncode}"])[-1]
        raise DryRunError(f"a dry run in a process of its own failed: {last}")
    return finished.stdout.strip().splitlines()[-1]


def dry_run(configuration: Configuration, task: ImageTask, device: "torch.device") -> TrialMemory:
    """Train for two steps, evaluate and save, on noise, in this process, which should be a fresh one.

    Raises:
        DryRunError: The training fails.
    """
    from trainers.training.loop import train
    from trainers.training.reporting import SilentReporter

    batch_size = round(largest(configuration.recipe.batch_size))
    largest_step = {
        "curriculum": (PluginChoice(name="none"),),
        "warmup": 0.0,
        "batch_size": batch_size,
        "image_size": None,
    }
    recipe = configuration.recipe.model_copy(update=largest_step)
    short = configuration.model_copy(update={"recipe": recipe, "epochs": 1, "stopping": None})
    before = _taken(device)
    with tempfile.TemporaryDirectory() as folder:
        data = _noise(task, num_train=_STEPS * batch_size)
        outcome = train(TrainTask(configuration=short, folder=Path(folder)), data, SilentReporter(), device)
    if outcome.state != "complete":
        raise DryRunError(f"a dry run must train, but it is {outcome.state}: {outcome.reason}")
    return TrialMemory(process_gib=before, training_gib=max(0.0, _peak(device) - before))


def _taken(device: "torch.device") -> float:
    """GiB that the process needs before it trains, once all libraries are loaded."""
    import torch

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)  # the first one loads more of torch
    create("augmentations", "affine").augment(torch.zeros(1, 1, 8, 8), strength=1.0, seed=0)
    return CUDA_CONTEXT_GIB if device.type == "cuda" else _peak(device)


def _peak(device: "torch.device") -> float:
    """Most GiB that this process has had."""
    import torch

    if device.type == "cuda":
        return CUDA_CONTEXT_GIB + torch.cuda.max_memory_reserved(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    status = Path("/proc/self/status")
    if status.exists():  # Linux passes on `ru_maxrss` from the process that started it
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _noise(task: ImageTask, *, num_train: int) -> "ImageData":
    import torch

    from trainers.data.images import ImageData, ImageSplit

    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> ImageSplit:
        shape = (count, task.in_channels, task.image_size, task.image_size)
        return ImageSplit(
            images=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
            labels=torch.randint(task.num_classes, (count,), generator=generator),
        )

    return ImageData(
        name="dry run",
        task=task,
        class_names=tuple(map(str, range(task.num_classes))),
        mean=(0.5,) * task.in_channels,
        std=(0.3,) * task.in_channels,
        train=split(num_train),
        validation=split(max(1, _EVALUATED_PIXELS // task.image_size**2)),
        digest="",
    )


def _costs(topology: str, task: ImageTask) -> Costs:
    costs: Costs = load("spaces", topology.partition(":")[0]).costs(parse_topology(topology), task)
    return costs


def main() -> None:
    """Read a question from standard input, and print its answer as a line of JSON."""
    from trainers.hardware.devices import describe_devices, pick_device

    question = json.loads(sys.stdin.read())
    if not question:
        sys.stdout.write(describe_devices().model_dump_json() + "\n")
        return
    configuration = Configuration.model_validate(question["configuration"])
    task = ImageTask.model_validate(question["task"])
    sys.stdout.write(dry_run(configuration, task, pick_device()).model_dump_json() + "\n")


if __name__ == "__main__":
    main()
