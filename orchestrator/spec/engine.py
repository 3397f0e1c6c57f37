"""Execution settings in a study file: engine, scheduler, pool and resources.

All of it affects execution only: it may change between executions of a study.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, model_serializer, model_validator

from orchestrator.spec.problems import Problem, first_problem, found
from plugins.registry import nearest_name
from search_spaces.numbers import MAX_COUNT, NumericModel
from search_spaces.recipes import PluginChoice
from trainers.config import Resources

EngineName = Literal["auto", "optuna", "ray"]
PoolName = Literal["auto", "inline", "ray"]
INSTALL_RAY = "pip install 'ray[tune]'"


class _Plain(NumericModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSpec(_Plain):
    """The name of an engine with an optional scheduler: `ray`, or `{name: ray, scheduler: asha}`."""

    name: EngineName = Field(
        default="auto",
        description="`optuna` asks an Optuna sampler for each trial, `ray` runs training trials with Ray Tune",
    )
    scheduler: PluginChoice | None = Field(
        default=None,
        description="stops weak trials early (`asha`, `hyperband`, `median`, `pasha`) or lets them copy "
        "strong ones (`pbt`, `pb2`); needs Ray Tune",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, raw: Any) -> Any:
        name = raw.get("name", "auto") if isinstance(raw, Mapping) else raw
        names = get_args(EngineName)
        if isinstance(name, str) and name not in names:
            nearest = nearest_name(name, names)
            hint = f" Did you mean {nearest!r}?" if nearest else ""
            raise ValueError(f"must be {_listed(names)}, but got {name!r}.{hint}")
        return {"name": raw} if isinstance(raw, str) else raw

    @model_serializer
    def _to_short_form(self) -> Any:
        return {"name": self.name, "scheduler": self.scheduler.model_dump()} if self.scheduler else self.name


class ResourceSpec(Resources):
    """Limits on the resources of trials, and on the time that a training may be silent."""

    silent_minutes: float | None = Field(
        default=30,
        gt=0,
        allow_inf_nan=False,
        description="a training that finishes no batch for this time is marked as failed and its process ends (with "
        "pool `inline` this is the process of the study, which must be started again); null means no limit",
    )


# --- schedulers ---


class Asha(_Plain):
    """Asynchronous successive halving.

    Source: Li et al. 2018, arXiv:1810.05934; Ray Tune's AsyncHyperBandScheduler.
    """

    grace_epochs: int = Field(default=1, ge=1, le=MAX_COUNT, strict=True, description="epochs of the first rung")
    reduction_factor: float = Field(default=3, gt=1, description="one in this many trials continues to the next rung")
    brackets: int = Field(
        default=1,
        ge=1,
        le=MAX_COUNT,
        strict=True,
        description="number of brackets; each additional one starts one rung later",
    )


class HyperBand(_Plain):
    """HyperBand: the trials of a bracket wait for each other at every rung.

    Source: Li et al. 2017, JMLR 18; Ray Tune's HyperBandScheduler.
    """

    reduction_factor: float = Field(default=3, gt=1, description="one in this many trials continues to the next rung")


class MedianStopping(_Plain):
    """Stops a trial if its best value is worse than the median of the other trials' means up to the same epoch.

    Source: Golovin et al. 2017 (Vizier); Ray Tune's MedianStoppingRule.
    """

    grace_epochs: int = Field(
        default=1, ge=1, le=MAX_COUNT, strict=True, description="epochs that every trial may train"
    )
    min_trials: int = Field(
        default=3, ge=1, le=MAX_COUNT, strict=True, description="minimum number of other trials for a median"
    )


class Pasha(_Plain):
    """ASHA that raises its highest rung only while the ranking of the trials still changes.

    Source: Bohdal et al. 2023, arXiv:2207.06940.
    """

    grace_epochs: int = Field(default=1, ge=1, le=MAX_COUNT, strict=True, description="epochs of the first rung")
    reduction_factor: float = Field(default=3, gt=1, description="one in this many trials continues to the next rung")


class PopulationBased(_Plain):
    """Population-based training: weak trials copy strong ones and change their settings.

    Source: Jaderberg et al. 2017, arXiv:1711.09846; Ray Tune's PopulationBasedTraining.
    """

    every_epochs: int = Field(
        default=2, ge=1, le=MAX_COUNT, strict=True, description="epochs between two checks of a trial"
    )
    quantile: float = Field(default=0.25, gt=0, le=0.5, description="share of the trials that copy, and are copied")
    resample: float = Field(default=0.25, ge=0, le=1, description="probability that a changed setting is sampled again")


class PopulationBandits(_Plain):
    """Population-based bandits: like `pbt`, but a Gaussian process proposes the new settings.

    Source: Parker-Holder et al. 2020, arXiv:2002.02518; Ray Tune's PB2.
    """

    every_epochs: int = Field(
        default=2, ge=1, le=MAX_COUNT, strict=True, description="epochs between two checks of a trial"
    )
    quantile: float = Field(default=0.25, gt=0, le=0.5, description="share of the trials that copy, and are copied")


Scheduler = Asha | HyperBand | MedianStopping | Pasha | PopulationBased | PopulationBandits
SCHEDULERS: dict[str, type[Scheduler]] = {
    "asha": Asha,
    "hyperband": HyperBand,
    "median": MedianStopping,
    "pasha": Pasha,
    "pbt": PopulationBased,
    "pb2": PopulationBandits,
}
"""Settings class of each scheduler, by its name in a study file."""


def parse_scheduler(choice: PluginChoice) -> Scheduler:
    """Validate the settings of a scheduler.

    Raises:
        KeyError: There is no scheduler of that name.
        pydantic.ValidationError: The scheduler does not accept the settings.
    """
    return SCHEDULERS[choice.name].model_validate(choice.settings)


def scheduler_name(settings: Scheduler) -> str:
    """The name of a scheduler in a study file."""
    return next(name for name, kind in SCHEDULERS.items() if type(settings) is kind)


def engine_problems(engine: EngineSpec, pool: PoolName, resources: Resources) -> Iterator[Problem]:
    """Yield unknown schedulers, incompatible settings, and Ray if it is needed but not installed."""
    choice = engine.scheduler
    if choice is not None and choice.name not in SCHEDULERS:
        nearest = nearest_name(choice.name, list(SCHEDULERS))
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        message = f"must be one of {', '.join(SCHEDULERS)}, but got {found(choice.name)}.{hint}"
        yield Problem(("engine", "scheduler"), message)
    elif choice is not None:
        try:
            parse_scheduler(choice)
        except ValidationError as error:
            problem = first_problem(error, SCHEDULERS[choice.name], {})
            yield Problem(("engine", "scheduler", *problem.path), problem.message)
    if choice is not None and engine.name == "optuna":
        yield Problem(
            ("engine",),
            "a scheduler needs engine `ray`, but the engine is `optuna`. Choose `ray`, or remove the scheduler.",
        )
    if resources.trials_per_pack > 1 and (engine.name == "ray" or choice is not None):
        why = "engine `ray`" if engine.name == "ray" else "a scheduler, which needs engine `ray`"
        yield Problem(
            ("resources", "trials_per_pack"),
            f"must be 1 with {why}, because Ray Tune runs each trial in a separate process, but got "
            f"{resources.trials_per_pack}. Choose engine `optuna` (without a scheduler), or remove the line.",
        )
    yield from _gpu_problems(pool, resources)
    if engine.name == "ray" and pool == "inline":
        yield Problem(("pool",), "engine `ray` needs pool `ray`, but got `inline`. Remove the line.")
    if "ray" in (engine.name, pool) and not ray_is_installed():
        where = ("engine",) if engine.name == "ray" else ("pool",)
        yield Problem(where, f"`ray` needs Ray, which is not installed here. Install it with: {INSTALL_RAY}")


def _gpu_problems(pool: PoolName, resources: Resources) -> Iterator[Problem]:
    """Yield settings that exclude trials with several GPUs, if the file asks for such trials."""
    num_gpus = resources.gpus_per_trial or 0
    if num_gpus <= 1:
        return
    if resources.trials_per_pack > 1:
        yield Problem(
            ("resources", "trials_per_pack"),
            f"must be 1 with `gpus_per_trial: {num_gpus:g}`, because a pack has one GPU, but got "
            f"{resources.trials_per_pack}. Remove one of the two lines.",
        )
    if pool == "inline":
        yield Problem(
            ("pool",),
            f"`gpus_per_trial: {num_gpus:g}` needs pool `ray`, which starts a process for each GPU, but got `inline`. "
            "Remove the line, or set `gpus_per_trial` to 1.",
        )


def ray_is_installed() -> bool:
    """Whether Ray and Ray Tune are installed; nothing is imported."""
    found_spec = find_spec("ray")
    return found_spec is not None and found_spec.origin is not None


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:-1])} or {names[-1]!r}"
