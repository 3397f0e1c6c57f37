"""Creates Ray Tune's schedulers, and replays trials of earlier executions into them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from orchestrator.engines.interfaces import EngineUnavailableError, Search
from orchestrator.engines.ray.hyperband import WholeBrackets
from orchestrator.engines.ray.pasha import PashaScheduler
from orchestrator.engines.ray.population import MakeCopyTask, PointBandits, PointPopulation, Population, bandit_numbers
from orchestrator.spec.engine import (
    Asha,
    HyperBand,
    MedianStopping,
    Pasha,
    PopulationBandits,
    PopulationBased,
    Scheduler,
)
from trainers.config import EpochReport

TIME = "epoch"
_NEVER = 10**9


def make_scheduler(settings: Scheduler | None, search: Search, make_copy_task: MakeCopyTask) -> TrialScheduler:
    """Make the scheduler of a search.

    Args:
        settings: Settings of the scheduler; `None` for one that only starts trials.
        search: A search of training trials.
        make_copy_task: Makes the task of a trial that continues with another point.

    Raises:
        EngineUnavailableError: The search has no dimension that the scheduler can change.
    """
    metric, direction = search.scheduled_by
    budget = search.epochs or 1
    common: dict[str, Any] = {"metric": metric, "mode": "max" if direction == "maximize" else "min"}
    if isinstance(settings, Asha):
        # A trial at the end of its budget ends by itself, so that it is complete and not stopped.
        return AsyncHyperBandScheduler(
            time_attr=TIME,
            max_t=budget,
            grace_period=min(settings.grace_epochs, budget),
            reduction_factor=settings.reduction_factor,
            brackets=settings.brackets,
            stop_last_trials=False,
            **common,
        )
    if isinstance(settings, Pasha):
        grace = min(settings.grace_epochs, budget)
        return PashaScheduler(budget=budget, grace=grace, reduction_factor=settings.reduction_factor, **common)
    if isinstance(settings, HyperBand):
        return WholeBrackets(
            time_attr=TIME,
            max_t=budget,
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
            **common,
        )
    if isinstance(settings, MedianStopping):
        return MedianStoppingRule(
            time_attr=TIME,
            grace_period=settings.grace_epochs,
            min_samples_required=settings.min_trials,
            min_time_slice=_NEVER,  # otherwise it pauses trials in turn until there are enough
            **common,
        )
    if isinstance(settings, PopulationBased | PopulationBandits):
        return _population(settings, search, make_copy_task, common)
    return FIFOScheduler()


def _population(
    settings: PopulationBased | PopulationBandits, search: Search, make_copy_task: MakeCopyTask, common: dict[str, Any]
) -> TrialScheduler:
    resample = settings.resample if isinstance(settings, PopulationBased) else 0.0
    population = Population(search, make_copy_task, quantile=settings.quantile, resample=resample)
    options = {
        "time_attr": TIME,
        "perturbation_interval": settings.every_epochs,
        "quantile_fraction": settings.quantile,
        "require_attrs": False,
        **common,
    }
    if isinstance(settings, PopulationBased):
        if not search.changeable:
            raise _nothing_to_change("pbt", "learning rate, curriculum or regularisation")
        return PointPopulation(population, **options)
    numbers = bandit_numbers(search)
    if not numbers:
        raise _nothing_to_change("pb2", "a range of real numbers of the learning rate or regularisation")
    return PointBandits(population, numbers, **options)


def _nothing_to_change(name: str, what: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"scheduler `{name}` changes settings during training, so the train stage's `recipe` must search a changeable "
        f"one ({what}), but it searches none. Add one, or choose another scheduler."
    )


class _EndedTrial(NamedTuple):
    """Stands in for a Tune trial that ended in an earlier execution."""

    trial_id: str


class _NoController:
    """Stands in for Tune's controller while a scheduler learns ended trials."""

    def get_trials(self) -> list[Any]:
        return []

    def get_live_trials(self) -> list[Any]:
        return []


def teach(scheduler: TrialScheduler, curves: Iterable[tuple[int, Sequence[EpochReport]]]) -> None:
    """Replay the curves of earlier executions, in order of trial numbers, into a scheduler that compares at rungs.

    HyperBand and the population-based schedulers compare only trials that run together, and start anew.
    """
    if not isinstance(scheduler, AsyncHyperBandScheduler | MedianStoppingRule | PashaScheduler):
        return
    controller = _NoController()
    for number, curve in curves:
        trial = _EndedTrial(f"ended-{number}")
        if not curve:
            continue
        scheduler.on_trial_add(controller, trial)
        for report in curve:
            scheduler.on_trial_result(controller, trial, report.as_result())
        if isinstance(scheduler, PashaScheduler):
            scheduler.on_trial_remove(controller, trial)
        else:
            scheduler.on_trial_complete(controller, trial, curve[-1].as_result())
