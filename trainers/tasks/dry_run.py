"""Measures the memory of a training with a short run on noise in a separate process."""

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
from trainers.config import Configuration, Precision, TrainTask
from trainers.hardware.host import GIB
from trainers.hardware.resources import Devices, TrialMemory

if TYPE_CHECKING:
    import torch

    from trainers.data.images import ImageData

CUDA_CONTEXT_GIB = 0.6
"""GPU memory of a process besides its tensors: the CUDA context and the kernels of torch, cuBLAS and cuDNN."""

_STEPS = 2
"""Number of training steps. From the second, gradients, optimizer state and activations exist together."""
_EVALUATED_PIXELS = 1 << 19
"""Number of validation pixels, which make one evaluation batch."""
_SECONDS = 600.0


class DryRunError(RuntimeError):
    """A dry run failed; the message gives the reason."""


class MemoryKey(NamedTuple):
    """Class of trainings whose memory differs by up to a factor of 2; the most expensive of them is measured."""

    space: str
    parameters: int
    """Binary logarithm of the number of parameters, rounded up."""
    macs: int
    """Binary logarithm of the multiply-accumulates, rounded up."""
    batch_size: int
    image_size: int


def memory_key(configuration: Configuration, task: ImageTask) -> MemoryKey:
    """The memory class of a training."""
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
    """Measure the memory of each class of trainings once, with its most expensive topology.

    Args:
        configurations: All possible trainings.
        task: Image size, channels and classes of the data.
        measure: Measures one training, such as `measure_apart`.
        known: Classes that are already measured.
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
    configuration: Configuration,
    task: ImageTask,
    *,
    num_images: int,
    precision: Precision = "auto",
    timeout_s: float = _SECONDS,
) -> TrialMemory:
    """Dry-run a training in a child process, on the device that trials use.

    Args:
        configuration: What to train. Its data are not loaded.
        task: Image size, channels and classes of the data.
        num_images: Number of training images, which each process keeps on its device.
        precision: Number format of the trainings.
        timeout_s: Timeout of the child process, in seconds.

    Raises:
        DryRunError: The training does not fit, fails or takes too long.
    """
    question = {
        "configuration": configuration.model_dump(mode="json"),
        "task": task.model_dump(mode="json"),
        "precision": precision,
    }
    memory = TrialMemory.model_validate_json(_ask(json.dumps(question), timeout_s))
    images_gib = num_images * task.in_channels * task.image_size**2 / GIB
    return memory.model_copy(update={"process_gib": memory.process_gib + images_gib})


def describe_devices_apart(timeout_s: float = _SECONDS) -> Devices:
    """Run `trainers.hardware.devices.describe_devices` in a child process, without a CUDA context or torch in this one.

    Raises:
        DryRunError: A device cannot be used.
    """
    return Devices.model_validate_json(_ask("{}", timeout_s))


def _ask(question: str, timeout_s: float) -> str:
    command = [sys.executable, "-m", "trainers.tasks.dry_run"]
    try:
        finished = subprocess.run(  # noqa: S603 - runs this module with JSON as input
            command, input=question, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DryRunError(
            f"a dry run must end within {timeout_s:.0f} s, but was still running. Set `resources` in the study file."
        ) from error
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
        raise DryRunError(f"a dry run in a child process failed: {last}")
    return finished.stdout.strip().splitlines()[-1]


def dry_run(
    configuration: Configuration, task: ImageTask, device: "torch.device", *, precision: Precision = "auto"
) -> TrialMemory:
    """Train for two steps on noise, evaluate and save, in this process, which should be a new one.

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
    short = configuration.model_copy(update={"recipe": recipe, "epochs": 1, "stopping": None, "weights": None})
    before = _taken(device)
    with tempfile.TemporaryDirectory() as folder:
        data = _noise(task, num_train=_STEPS * batch_size, class_names=_class_names(configuration, task))
        whole = TrainTask(configuration=short, folder=Path(folder), precision=precision)
        outcome = train(whole, data, SilentReporter(), device)
    if outcome.state != "complete":
        raise DryRunError(f"a dry run must end as complete, but it is {outcome.state}: {outcome.reason}")
    return TrialMemory(process_gib=before, training_gib=max(0.0, peak_gib(device) - before))


def _taken(device: "torch.device") -> float:
    """Memory in GiB of the process before training, with all libraries loaded."""
    import torch

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)  # the first optimizer loads more of torch
    create("augmentations", "affine").augment(torch.zeros(1, 1, 8, 8), strength=1.0, seed=0)
    return CUDA_CONTEXT_GIB if device.type == "cuda" else peak_gib(device)


def peak_gib(device: "torch.device") -> float:
    """Peak memory of this process on a device in GiB."""
    import torch

    if device.type == "cuda":
        return CUDA_CONTEXT_GIB + torch.cuda.max_memory_reserved(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, a child process inherits `ru_maxrss`
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _class_names(configuration: Configuration, task: ImageTask) -> tuple[str, ...]:
    """Names of as many classes as the data have; those of the teacher, which must know them, if there is one."""
    if configuration.teacher is None:
        return tuple(map(str, range(task.num_classes)))
    from trainers.weights.prepared import read_prepared

    return read_prepared(configuration.teacher).class_names[: task.num_classes]


def _noise(task: ImageTask, *, num_train: int, class_names: tuple[str, ...]) -> "ImageData":
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
        class_names=class_names,
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
    """Read a request from standard input and print the answer as one line of JSON."""
    from trainers.hardware.devices import describe_devices, pick_device

    question = json.loads(sys.stdin.read())
    if not question:
        sys.stdout.write(describe_devices().model_dump_json() + "\n")
        return
    configuration = Configuration.model_validate(question["configuration"])
    task = ImageTask.model_validate(question["task"])
    found = dry_run(configuration, task, pick_device(), precision=question["precision"])
    sys.stdout.write(found.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
