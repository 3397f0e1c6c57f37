"""Chooses the engine and the pool that run a study on this machine, with the reason."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orchestrator.engines.interfaces import Engine, EngineUnavailableError, Pool
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.pools.adaptive import AdaptivePool
from orchestrator.engines.pools.inline import InlinePool
from orchestrator.engines.training_costs import TrainingCosts
from orchestrator.spec.engine import (
    INSTALL_RAY,
    ResourceSpec,
    Scheduler,
    parse_scheduler,
    ray_is_installed,
    scheduler_name,
)
from orchestrator.spec.study_file import StudySpec
from trainers.hardware.host import GIB, available_cores, available_memory_gib

if TYPE_CHECKING:
    from orchestrator.engines.ray.pool import RayPool

_SMALL_IMAGE = 64
_LARGE_GPU_GIB = 8
"""Several trainings on small images fit on such a GPU, and one leaves it idle; their number is measured."""
_WORKER_GIB = 1.0
"""Memory of a worker process without the activations of large trainings, whose number is measured."""


class Machine(NamedTuple):
    """The properties of the machine that determine the choice."""

    num_gpus: int
    gpu_gib: float
    """Memory of the smallest GPU."""
    num_cpus: int
    ray_address: str | None
    """Address of a cluster to attach to, from `RAY_ADDRESS`."""
    has_ray: bool
    """Whether Ray is installed."""
    has_mps: bool = False
    """Whether there is an Apple GPU."""
    memory_gib: float = math.inf
    """Main memory that this process may still allocate."""


@dataclass(frozen=True, kw_only=True)
class ExecutionSetup:
    """The engine and pool of one execution of a study."""

    engine: Literal["optuna", "ray"]
    pool: Literal["auto", "inline", "ray"]
    """With `auto`, each search runs on Ray if that ends it earlier, and otherwise in the process of the study."""
    scheduler: Scheduler | None
    ray_address: str | None
    reason: str
    """Describes for people how trials run, and why."""
    num_workers: int | None = None
    """Maximum number of concurrent trials with pool `auto`."""

    def record(self) -> dict[str, Any]:
        """The setup as plain data, stored with the execution."""
        scheduler = {}
        if self.scheduler is not None:
            settings = self.scheduler.model_dump(mode="json")
            scheduler = {"scheduler": {"name": scheduler_name(self.scheduler), **settings}}
        return {
            "engine": self.engine,
            "pool": self.pool,
            **scheduler,
            **({"ray_address": self.ray_address} if self.ray_address else {}),
            "reason": self.reason,
        }


def detect_machine() -> Machine:
    """Detect the GPUs and CPU cores of this machine, and the cluster that RAY_ADDRESS names."""
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    sizes = [torch.cuda.get_device_properties(index).total_memory / GIB for index in gpus]
    return Machine(
        num_gpus=len(sizes),
        gpu_gib=min(sizes, default=0.0),
        num_cpus=available_cores(),
        ray_address=_cluster_address(),
        has_ray=ray_is_installed(),
        has_mps=torch.backends.mps.is_available(),
        memory_gib=available_memory_gib(),
    )


def _cluster_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address  # `local` means Ray on this machine


def choose(spec: StudySpec, machine: Machine) -> ExecutionSetup:
    """Choose engine and pool of an execution.

    Raises:
        EngineUnavailableError: The file or `RAY_ADDRESS` asks for Ray, which is not installed, or the file asks for
            more GPUs than this machine has.
    """
    engine, why_engine = _choose_engine(spec)
    pool, why_pool = _choose_pool(spec, machine, engine)
    if pool != "ray" or machine.ray_address is None:  # a cluster may still get nodes with GPUs
        _check_gpus(spec, machine)
    reason = "; ".join(filter(None, (why_engine, why_pool)))
    if pool == "ray" and not machine.has_ray:
        raise EngineUnavailableError(
            f"{why_pool or why_engine}, but Ray is not installed here. Install it with: {INSTALL_RAY}"
        )
    return ExecutionSetup(
        engine=engine,
        pool=pool,
        scheduler=None if spec.engine.scheduler is None else parse_scheduler(spec.engine.scheduler),
        ray_address=machine.ray_address if pool == "ray" else None,
        reason=reason,
        num_workers=_num_workers(spec, machine) if pool == "auto" else None,
    )


def _check_gpus(spec: StudySpec, machine: Machine) -> None:
    """Raise EngineUnavailableError if a trial needs more GPUs than there are."""
    wanted = spec.resources.gpus_per_trial or 0
    if wanted > machine.num_gpus:
        found = "no GPU that can be used" if machine.num_gpus == 0 else _describe(machine)
        raise EngineUnavailableError(
            f"resources.gpus_per_trial: each trial must get its {wanted:g} GPUs on this machine, but it has {found}. "
            "Lower it, remove the line, or set RAY_ADDRESS to a cluster with GPUs."
        )


def _choose_engine(spec: StudySpec) -> tuple[Literal["optuna", "ray"], str]:
    if spec.engine.name == "ray":
        return "ray", "the study file asks for engine `ray`"
    if spec.engine.scheduler is not None:
        return "ray", f"the study file asks for scheduler `{spec.engine.scheduler.name}`, which runs on Ray Tune"
    return "optuna", "the study file asks for engine `optuna`" if spec.engine.name == "optuna" else ""


def _choose_pool(spec: StudySpec, machine: Machine, engine: str) -> tuple[Literal["auto", "inline", "ray"], str]:
    if engine == "ray":
        return "ray", ""
    several_gpus = spec.resources.gpus_per_trial or 0
    if several_gpus > 1:
        return "ray", f"each trial trains on {several_gpus:g} GPUs, with a process for each on Ray"
    if spec.pool != "auto":
        return spec.pool, f"the study file asks for pool `{spec.pool}`"
    if machine.ray_address:
        return "ray", f"RAY_ADDRESS names the cluster {machine.ray_address}"
    several = _reason_for_several(spec, machine)
    if several is not None and machine.has_ray:
        return "ray", f"{several}: running several trials at a time on Ray"
    packed = spec.resources.trials_per_pack
    trials = "running one trial at a time" if packed == 1 else f"running packs of up to {packed} trials"
    num_workers = _num_workers(spec, machine)
    if several is None and num_workers > 1 and machine.has_ray:
        why = f"{_describe(machine)}: running up to {num_workers} trials at a time"
        return "auto", f"{why}, and one at a time if a search is short"
    if several is not None or num_workers > 1:
        return "inline", f"{several or _describe(machine)}, but Ray is not installed ({INSTALL_RAY}): {trials}"
    return "inline", f"{_describe(machine)}: {trials}"


def _num_workers(spec: StudySpec, machine: Machine) -> int:
    """Number of workers on the CPU cores that `auto` may use; 1 if trials use a GPU, or packs, which use all cores."""
    limits = spec.resources
    if machine.num_gpus or limits.trials_per_pack > 1:
        return 1
    by_cores = math.floor(machine.num_cpus / (limits.cpus_per_trial or 1.0))
    by_memory = math.floor(min(machine.memory_gib / _WORKER_GIB, by_cores))
    return max(1, min(by_cores, by_memory, limits.max_concurrent or by_cores))


def _describe(machine: Machine) -> str:
    """Describe the machine in words."""
    if machine.num_gpus:
        return "1 GPU" if machine.num_gpus == 1 else f"{machine.num_gpus} GPUs"
    cores = "1 CPU core" if machine.num_cpus == 1 else f"{machine.num_cpus} CPU cores"
    if machine.has_mps:
        return f"{cores}, and an Apple GPU for trainings"
    return f"{cores}, no GPU"


def _reason_for_several(spec: StudySpec, machine: Machine) -> str | None:
    """Why the machine should run several trials at a time; `None` if it should not."""
    share, most = spec.resources.gpus_per_trial, spec.resources.max_concurrent
    if most is not None and (most == 1 or machine.num_gpus):
        return f"the study file allows {most} concurrent trials" if most > 1 else None
    if machine.num_gpus == 0 or share == 0:
        return None
    if machine.num_gpus > 1:
        return f"{machine.num_gpus} GPUs"
    if share is not None:
        return f"each trial uses {share:g} of a GPU" if share <= 0.5 else None
    if spec.resources.trials_per_pack > 1:
        return None  # a pack has the GPU
    if spec.data.image_size <= _SMALL_IMAGE and machine.gpu_gib >= _LARGE_GPU_GIB:
        return f"several trials with images of {spec.data.image_size} px fit on a GPU of {machine.gpu_gib:.0f} GiB"
    return None


def make_engine_and_pool(
    setup: ExecutionSetup,
    resources: ResourceSpec,
    *,
    scratch: Path,
    sources: Sequence[Path] = (),
    costs: TrainingCosts | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Engine, Pool]:
    """Make the engine and the pool of an execution; nothing starts yet.

    Args:
        setup: The choice.
        resources: Limits of the study file.
        scratch: A folder that all workers can write to, for files that end with the execution.
        sources: Files and folders that all workers read.
        costs: What the execution knows of the time of trainings.
        say: Shows a message to people, such as the number of concurrent trials of a search.
    """
    inline = InlinePool(resources.trials_per_pack)
    if setup.pool == "inline":
        return OptunaEngine(), inline

    def make_workers() -> "RayPool":
        return _make_ray_pool(setup, resources, scratch=scratch, sources=sources)

    if setup.pool == "auto":
        estimate_s = (costs or TrainingCosts()).training_s
        return OptunaEngine(), AdaptivePool(
            inline, make_workers, num_workers=setup.num_workers or 1, estimate_s=estimate_s, say=say
        )
    if setup.engine == "optuna":
        return OptunaEngine(), make_workers()
    from orchestrator.engines.ray.engine import RayEngine

    pool = make_workers()
    return RayEngine(pool, scheduler=setup.scheduler, scratch=scratch), pool


def _make_ray_pool(
    setup: ExecutionSetup, resources: ResourceSpec, *, scratch: Path, sources: Sequence[Path]
) -> "RayPool":
    from orchestrator.engines.ray.cluster import RayCluster
    from orchestrator.engines.ray.pool import RayPool
    from orchestrator.engines.ray.trial_resources import SharePlanner
    from orchestrator.engines.ray.worker import WorkerSettings

    cluster = RayCluster(address=setup.ray_address, shared=scratch, sources=sources)
    workers = WorkerSettings(
        max_concurrent=setup.num_workers or resources.max_concurrent, silent_minutes=resources.silent_minutes
    )
    return RayPool(cluster, shares=SharePlanner(cluster, resources), workers=workers)
