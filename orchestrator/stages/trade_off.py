"""Searches with two objectives, one of them a cost: the Pareto front of their trials, and the choice of one trial."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orchestrator.engines.interfaces import Objective
from orchestrator.spec.cost import Cost
from orchestrator.stages.context import StageContext
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import DecidingMetric

_ROUNDS = 5
"""Number of times that the latency of each topology is measured."""


class ChosenTrial(NamedTuple):
    """The trial for later stages. With two objectives, also the Pareto front and why the trial was chosen from it."""

    trial: TrialRecord
    reason: str | None = None
    """Completes the sentence "it is ...", such as `the knee of the front`."""
    front: Sequence[TrialRecord] = ()
    """The Pareto front, the cheapest trial first."""


def with_cost(metric: Objective, cost: Cost | None) -> tuple[Objective, ...]:
    """The objectives of a study."""
    return (metric,) if cost is None else (metric, Objective(cost.key, "minimize"))


def promotion_limit(context: StageContext) -> float | None:
    """The largest cost that a later `promote` stage allows; `None` without a limit."""
    later = context.spec.stages[context.stage.position + 1 :]
    limits = [limit for stage in later if (limit := getattr(stage, "limit", None)) is not None]
    return next(iter(limits[-1].values())) if limits else None


def pareto_front(trials: Sequence[TrialRecord], objectives: tuple[Objective, Objective]) -> list[TrialRecord]:
    """Trials that no other trial beats in one objective without losing in the other, the cheapest first.

    Of trials with equal values, the one with the lowest number is kept.

    Args:
        trials: Trials with both metrics.
        objectives: What trials should reach, and a cost to be minimised.
    """
    metric, cost = objectives
    sign = 1.0 if metric.direction == "maximize" else -1.0
    front: list[TrialRecord] = []
    best = -float("inf")
    ranked = [(trial.metrics[cost.metric], -sign * trial.metrics[metric.metric], trial.number) for trial in trials]
    for (_, negative, _), trial in sorted(zip(ranked, trials, strict=True), key=lambda pair: pair[0]):
        if -negative > best:
            best = -negative
            front.append(trial)
    return front


def knee_of(front: Sequence[TrialRecord], objectives: tuple[Objective, Objective]) -> TrialRecord:
    """The trial of a front that is farthest from the line between its two ends, with both objectives scaled to 0..1.

    With two trials, or if all lie on the line, it is the one with the best metric.

    Source: Das 1999, "On characterizing the knee of the Pareto curve", Structural Optimization 18.
    """
    metric, cost = objectives
    sign = 1.0 if metric.direction == "maximize" else -1.0
    values = [(trial.metrics[cost.metric], sign * trial.metrics[metric.metric]) for trial in front]
    (low_cost, low), (high_cost, high) = values[0], values[-1]
    if len(front) < 3 or high == low or high_cost == low_cost:
        return front[-1]
    # Above the line from (0, 0) to (1, 1), the distance is proportional to the metric minus the cost.
    heights = [(value - low) / (high - low) - (spent - low_cost) / (high_cost - low_cost) for spent, value in values]
    highest = max(heights)
    return front[heights.index(highest)] if highest > 0 else front[-1]


def choose_trial(
    ordered: Sequence[TrialRecord], objectives: tuple[Objective, ...], cost: Cost | None, *, limit: float | None
) -> ChosenTrial:
    """The trial for later stages: the best one, or with a cost the best one within the limit, or the knee of the front.

    Args:
        ordered: All trials with a result, the best one first.
        objectives: The metric, and the cost if there is one.
        cost: The cost.
        limit: Largest cost; `None` for no limit.
    """
    if cost is None:
        return ChosenTrial(ordered[0])
    pair = (objectives[0], objectives[1])
    front = pareto_front(ordered, pair)
    if limit is None:
        chosen = knee_of(front, pair)
        which = "the only trial of the front" if len(front) == 1 else "the knee of the front"
        return ChosenTrial(chosen, f"{which} ({cost.words} {cost.text(chosen.metrics[cost.key])})", front)
    within = [trial for trial in front if trial.metrics[cost.key] <= limit]
    if within:
        spent = cost.text(within[-1].metrics[cost.key])
        reason = f"the best trial within the limit ({cost.words} {spent} of {cost.text(limit)})"
        return ChosenTrial(within[-1], reason, front)
    spent = cost.text(front[0].metrics[cost.key])
    reason = f"the cheapest trial, NOT within the limit ({cost.words} {spent}, limit {cost.text(limit)})"
    return ChosenTrial(front[0], reason, front)


def describe_front(front: Sequence[TrialRecord], key: str, metric: DecidingMetric, cost: Cost) -> str:
    """The front in a few words: `94.2 % at 5.1 ms`, for each trial."""
    return ", ".join(f"{metric.text(trial.metrics[key])} at {cost.text(trial.metrics[cost.key])}" for trial in front)


def latencies(
    context: StageContext, topologies: Sequence[str], begun: Sequence[TrialRecord], cost: Cost
) -> Mapping[str, float]:
    """The time of each topology's forward pass of one image in ms, measured on this machine.

    A topology is measured once: its later trials have the value of its first one, in a resumed study as well.
    """
    from trainers.tasks.latency import measure_latency

    known = {
        str(trial.point["topology"]): trial.metrics[cost.key]
        for trial in reversed(begun)
        if trial.is_usable and cost.key in trial.metrics
    }
    missing = [topology for topology in topologies if topology not in known]
    if missing:
        context.progress.note(f"measuring the latency of {len(missing)} topologies on this machine")
    # Other load comes and goes. Rounds over all topologies spread it, and the least of each is the undisturbed one.
    rounds = [{topology: measure_latency(topology, context.image_task) for topology in missing} for _ in range(_ROUNDS)]
    return known | {topology: min(one[topology] for one in rounds) for topology in missing}
