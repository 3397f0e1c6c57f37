"""Which engine and which pool run a study here, and why."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator.engines.interfaces import Engine, EngineUnavailableError, Pool
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.pools.inline import InlinePool
from orchestrator.spec.engine import RAY_EXTRA, ResourceSpec, Scheduler, parse_scheduler, ray_is_installed
from orchestrator.spec.study_file import StudySpec
from trainers.hardware.host import GIB, available_cores

_SMALL_IMAGE = 64
_LARGE_GPU_GIB = 8
"""Several trainings on small images fit on such a GPU, and one leaves it idle; how many is measured."""


class Machine(NamedTuple):
    """What there is to choose from."""

    num_gpus: int
    gpu_gib: float
    """Memory of the smallest GPU."""
    num_cpus: int
    ray_address: str | None
    """`RAY_ADDRESS`: of a cluster to attach to."""
    has_ray: bool
    """Whether Ray is installed."""
    has_mps: bool = False
    """Whether there is an Apple GPU."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How one execution of a study is run."""

    engine: Literal["optuna", "ray"]
    pool: Literal["inline", "ray"]
    scheduler: str | None
    settings: Scheduler | None
    """Of the scheduler."""
    ray_address: str | None
    reason: str

    def record(self) -> dict[str, Any]:
        """As the execution keeps it."""
        settings = self.settings.model_dump(mode="json") if self.settings else {}
        return {
            "engine": self.engine,
            "pool": self.pool,
            **({"scheduler": {"name": self.scheduler, **settings}} if self.scheduler else {}),
            **({"ray_address": self.ray_address} if self.ray_address else {}),
            "reason": self.reason,
        }


def look_around() -> Machine:
    """This machine, and the cluster that the environment names."""
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
    )


def _cluster_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address  # `local` is Ray's own word for one on this machine


def choose(spec: StudySpec, machine: Machine) -> Choice:
    """Engine and pool of an execution.

    Raises:
        EngineUnavailableError: Ray is asked for, by the file or by `RAY_ADDRESS`, and is not installed.
    """
    scheduler = spec.engine.scheduler
    engine: Literal["optuna", "ray"] = "optuna"
    if spec.engine.name == "ray":
        engine, why_engine = "ray", "engine `ray` is asked for"
    elif scheduler is not None:
        engine, why_engine = "ray", f"the scheduler `{scheduler.name}` is Ray Tune's"
    elif spec.engine.name == "optuna":
        why_engine = "engine `optuna` is asked for"
    else:
        why_engine = "engine `optuna` needs nothing else where no scheduler is asked for"
    pool, why_pool = _choose_pool(spec, machine, engine)
    if pool == "ray" and not machine.has_ray:
        raise EngineUnavailableError(
            f"{why_pool if engine == 'optuna' else why_engine}, but Ray is not installed here. "
            f"Install it with: {RAY_EXTRA}"
        )
    return Choice(
        engine=engine,
        pool=pool,
        scheduler=scheduler.name if scheduler else None,
        settings=parse_scheduler(scheduler) if scheduler else None,
        ray_address=machine.ray_address if pool == "ray" else None,
        reason=f"{why_engine}; {why_pool}",
    )


def _choose_pool(spec: StudySpec, machine: Machine, engine: str) -> tuple[Literal["inline", "ray"], str]:
    if engine == "ray":
        return "ray", "its trials run on pool `ray`"
    if spec.pool == "ray":
        return "ray", "pool `ray` is asked for"
    if spec.pool == "inline":
        return "inline", "pool `inline` is asked for"
    if machine.ray_address:
        return "ray", f"RAY_ADDRESS names the cluster {machine.ray_address}"
    reason = _reason_for_several(spec, machine)
    if reason is not None and machine.has_ray:
        return "ray", f"pool `ray`, as {reason}"
    if reason is not None:
        return "inline", f"pool `inline`, as Ray is not installed ({RAY_EXTRA}), although {reason}"
    device = "one GPU" if machine.num_gpus else f"no GPU, {machine.num_cpus} CPU cores"
    if machine.has_mps and not machine.num_gpus:
        device = f"{machine.num_cpus} CPU cores; its Apple GPU lacks the float64 that evaluation needs"
    more = "" if machine.num_gpus or machine.num_cpus < 2 else " (`pool: ray` trains several at once)"
    packed = spec.resources.trials_per_pack
    trials = "trials" if packed == 1 else f"packs of up to {packed} trainings"
    return "inline", f"pool `inline` suits this machine ({device}): {trials} one after another{more}"


def _reason_for_several(spec: StudySpec, machine: Machine) -> str | None:
    """Why several trials at once suit the machine; `None` where one after another does."""
    share, most = spec.resources.gpus_per_trial, spec.resources.max_concurrent
    if most is not None:
        return f"{most} trials at once are asked for" if most > 1 else None
    if machine.num_gpus == 0 or share == 0:
        return None
    if machine.num_gpus > 1:
        return f"there are {machine.num_gpus} GPUs"
    if share is not None:
        return f"trials of {share:g} of a GPU share one" if share <= 0.5 else None
    if spec.resources.trials_per_pack > 1:
        return None  # a pack has the GPU
    if spec.data.image_size <= _SMALL_IMAGE and machine.gpu_gib >= _LARGE_GPU_GIB:
        return f"several trials with images of {spec.data.image_size} px fit on a GPU of {machine.gpu_gib:.0f} GiB"
    return None


def make_engine_and_pool(
    choice: Choice, resources: ResourceSpec, *, scratch: Path, sources: Sequence[Path] = ()
) -> tuple[Engine, Pool]:
    """The engine and the pool of an execution; nothing is started yet.

    Args:
        choice: What `choose` says.
        resources: Limits of the study file.
        scratch: A folder that all workers reach, for what must not outlive the execution.
        sources: Files and folders that all workers read.
    """
    if choice.pool == "inline":
        return OptunaEngine(), InlinePool(resources.trials_per_pack)
    from orchestrator.engines.ray.cluster import RayCluster
    from orchestrator.engines.ray.pool import RayPool
    from orchestrator.engines.ray.trial_resources import SharePlanner

    cluster = RayCluster(address=choice.ray_address, shared=scratch, sources=sources)
    shares = SharePlanner(cluster, resources)
    pool = RayPool(
        cluster, shares=shares, max_concurrent=resources.max_concurrent, silent_minutes=resources.silent_minutes
    )
    if choice.engine == "optuna":
        return OptunaEngine(), pool
    from orchestrator.engines.ray.engine import RayEngine

    return RayEngine(
        cluster,
        pool,
        shares=shares,
        max_concurrent=resources.max_concurrent,
        scheduler=choice.scheduler,
        settings=choice.settings,
        silent_minutes=resources.silent_minutes,
        scratch=scratch,
    ), pool
