"""Resources of a machine, memory of a training, and how many trainings share a GPU. No GPU is needed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from search_spaces.base import ImageTask
from tests.unit.training import CPU, TOPOLOGY, configuration
from trainers.config import Configuration, Resources, TaskOutcome, TrainTask
from trainers.hardware import devices as trainer_devices
from trainers.hardware.devices import describe_devices, useful_threads
from trainers.hardware.host import GIB, available_cores, available_memory_gib
from trainers.hardware.resources import Devices, Gpu, TrialMemory, TrialResources, largest_pack, plan_resources
from trainers.tasks.dry_run import DryRunError, dry_run, measure_apart, measure_classes, memory_key
from trainers.training import loop

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
SMALL = TrialMemory(process_gib=1.0, training_gib=1.0)
"""2.5 GiB with the usual margin."""


def machine(*free_gib: float, cores: int = 16, memory_gib: float = 64.0) -> Devices:
    gpus = tuple(Gpu(name="GPU", total_gib=80.0, free_gib=free) for free in free_gib)
    return Devices(cores=cores, memory_gib=memory_gib, gpus=gpus)


def planned(devices: Devices, memory: TrialMemory | None = SMALL, *, pack: int = 1, **limits: float) -> TrialResources:
    return plan_resources(devices, memory, Resources.model_validate(limits), pack_size=pack)


# --- sharing ---


def test_small_trials_share_a_gpu_and_a_large_one_gets_its_own() -> None:
    assert planned(machine(10.0)) == TrialResources(cpus=4, gpu_fraction=0.25, threads=4, max_concurrent=4)
    large = TrialMemory(process_gib=1.0, training_gib=30.0)
    assert planned(machine(40.0, 40.0), large) == TrialResources(cpus=8, gpu_fraction=1, threads=8, max_concurrent=2)


@pytest.mark.parametrize("count", range(1, 40))
def test_as_many_trials_as_are_planned_fit_on_a_gpu(count: int) -> None:
    plan = planned(machine(2.5 * count + 0.1, cores=64))
    assert plan.max_concurrent == count
    assert plan.gpu_fraction * count <= 1
    assert plan.gpu_fraction * (count + 1) > 1
    assert round(plan.gpu_fraction * 10_000) == pytest.approx(plan.gpu_fraction * 10_000)  # what Ray can count


def test_the_gpu_with_the_least_free_memory_counts() -> None:
    assert planned(machine(70.0, 5.0)).gpu_fraction == 0.5


def test_few_cores_spread_the_trials_over_all_gpus() -> None:
    plan = planned(machine(80.0, 80.0, cores=6))
    assert plan == TrialResources(cpus=1, gpu_fraction=0.3333, threads=1, max_concurrent=6)


def test_without_a_gpu_cores_are_shared_out() -> None:
    assert planned(machine(cores=4)) == TrialResources(cpus=1, gpu_fraction=0, threads=1, max_concurrent=4)
    assert planned(machine(cores=8), max_concurrent=3) == TrialResources(
        cpus=2, gpu_fraction=0, threads=2, max_concurrent=3
    )


def test_main_memory_limits_trials_on_the_cpu() -> None:
    plan = planned(machine(cores=8, memory_gib=5.2))
    assert plan == TrialResources(cpus=4, gpu_fraction=0, threads=4, max_concurrent=2)


def test_a_pack_takes_the_memory_of_its_trainings() -> None:
    assert planned(machine(10.0), pack=7).gpu_fraction == 1.0
    assert largest_pack(machine(10.0), SMALL) == 7
    assert largest_pack(machine(10.0), SMALL, Resources(gpus_per_trial=0.5)) == 3
    assert largest_pack(machine(memory_gib=5.0), SMALL) == 3


def test_limits_go_before_what_is_found_out() -> None:
    devices = machine(80.0, 80.0)
    assert planned(devices, cpus_per_trial=0.5).cpus == 0.5
    assert planned(devices, cpus_per_trial=8) == TrialResources(cpus=8, gpu_fraction=1, threads=8, max_concurrent=2)
    assert planned(devices, gpus_per_trial=0.1).max_concurrent == 16
    assert planned(devices, gpus_per_trial=2).max_concurrent == 1
    assert planned(devices, gpus_per_trial=0).gpu_fraction == 0
    assert planned(devices, max_concurrent=2).gpu_fraction == 1
    assert planned(machine(10.0), memory_margin=1.0).gpu_fraction == 0.5


def test_without_a_measurement_only_cores_count() -> None:
    assert planned(machine(10.0), None).max_concurrent == 16
    assert planned(machine(cores=4, memory_gib=0.1), None).max_concurrent == 4


@pytest.mark.parametrize(
    ("devices", "where"), [(machine(2.0), "the GPU with the least"), (machine(memory_gib=2.0), "this machine's memory")]
)
def test_a_trial_that_fits_nowhere_is_refused(devices: Devices, where: str) -> None:
    reason = rf"needs 2\.50 GiB with its margin, but {where}.* has 2\.00 GiB free\. Lower recipe\.batch_size"
    with pytest.raises(ValueError, match=reason):
        planned(devices)
    with pytest.raises(ValueError, match=r"needs 1\.00 GiB with its margin, but .* has 0\.00 GiB free"):
        largest_pack(machine(1.25) if devices.gpus else machine(memory_gib=1.25), SMALL)


def test_more_gpus_than_there_are_cannot_be_demanded() -> None:
    with pytest.raises(ValueError, match="at most 1, the number of GPUs, but got 2"):
        planned(machine(80.0), gpus_per_trial=2)
    with pytest.raises(ValidationError, match=r"got 1\.5\. Use 1 or 2"):
        Resources(gpus_per_trial=1.5)


# --- the machine ---


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_cores_are_those_of_the_control_group(tmp_path: Path, quota: str, cores: int) -> None:
    root = write(tmp_path, proc__self__cgroup="0::/jobs/mine\n", sys__fs__cgroup__jobs__cpu_DOT_max=quota)
    assert available_cores(root) == cores


@pytest.mark.usefixtures("four_cores")
def test_cores_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us="300000\n",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us="100000\n",
        sys__fs__cgroup__memory__docker__x__memory_DOT_limit_in_bytes=f"{3 * 2**30}",
        sys__fs__cgroup__memory__docker__x__memory_DOT_usage_in_bytes=f"{2**30}",
        proc__meminfo="MemTotal: 64 kB\nMemAvailable: 8388608 kB\n",
    )
    assert available_cores(root) == 3
    assert available_memory_gib(root) == pytest.approx(2.0)


@pytest.mark.usefixtures("four_cores")
def test_where_nothing_is_limited_the_machine_counts(tmp_path: Path) -> None:
    root = write(tmp_path, proc__meminfo="MemAvailable: 8388608 kB\n")
    assert available_cores(root) == 4
    assert available_memory_gib(root) == pytest.approx(8.0)


def test_this_machine_is_described() -> None:
    found = describe_devices()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory_gib > 0
    assert len(found.gpus) == torch.cuda.device_count()


def test_gpus_are_described_with_their_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = [(10 * 2**30, 80 * 2**30), (79 * 2**30, 80 * 2**30)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: memory[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(trainer_devices, "available_cores", lambda: 7)
    found = describe_devices()
    assert found.cores == 7
    assert [(gpu.name, gpu.free_gib, gpu.total_gib) for gpu in found.gpus] == [("GPU 0", 10, 80), ("GPU 1", 79, 80)]


@pytest.mark.parametrize(("macs", "threads"), [(1e6, 1), (2.9e9, 2), (1e12, 8)])
def test_a_step_gets_no_more_threads_than_it_can_feed(macs: float, threads: int) -> None:
    assert useful_threads(macs, 8) == threads


# --- what a training takes ---


def training(topology: str = TOPOLOGY, batch_size: int = 16) -> Configuration:
    return configuration(recipe={"batch_size": batch_size}).model_copy(update={"topology": topology})


def test_a_dry_run_tells_what_a_training_takes() -> None:
    before = torch.get_rng_state()
    found = dry_run(training(), TASK, CPU)
    assert found.process_gib * GIB > 2**20
    assert found.training_gib >= 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_dry_run_computes_as_the_trials_do(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    train = loop.train

    def noted(task: TrainTask, *others: Any) -> TaskOutcome:
        used.append(task.precision)
        return train(task, *others)

    monkeypatch.setattr(loop, "train", noted)
    dry_run(training(), TASK, CPU, precision="bfloat16")
    assert used == ["bfloat16"]


@pytest.mark.slow
def test_a_process_of_its_own_measures_a_larger_batch_as_larger() -> None:
    small, large = (measure_apart(training(batch_size=size), TASK, num_images=2**20) for size in (2, 2048))
    assert large.training_gib > small.training_gib + 0.1
    assert small.process_gib > 1.0  # a GiB of images
    assert 0 < small.training_gib < 0.5


def test_a_dry_run_that_fails_says_why() -> None:
    with pytest.raises(DryRunError, match="failed: ValueError: an As-ViT topology must have"):
        measure_apart(training(topology="as-vit:nonsense"), TASK, num_images=1)


def test_each_class_is_measured_once_with_its_costliest_topology() -> None:
    wider = TOPOLOGY.replace("16,4", "16,8")
    similar = [TOPOLOGY.replace("as-vit:4", f"as-vit:{kernel}") for kernel in (4, 5)]
    assert memory_key(training(similar[0]), TASK) == memory_key(training(similar[1]), TASK)
    asked: list[Configuration] = []

    def measure(one: Configuration) -> TrialMemory:
        asked.append(one)
        return TrialMemory(process_gib=len(asked), training_gib=0)

    given = [training(similar[0]), training(similar[1]), training(wider), training(similar[0], 32), training(wider)]
    found = measure_classes(given, TASK, measure)
    assert [(one.topology, one.recipe.batch_size) for one in asked] == [(similar[1], 16), (wider, 16), (similar[0], 32)]
    assert found.keys() == {memory_key(one, TASK) for one in given}
    assert measure_classes(given, TASK, measure, known=found) == found
    assert len(asked) == 3
