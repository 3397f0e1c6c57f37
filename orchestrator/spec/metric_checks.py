"""Checks of a study's `metric`: one that compares models, alone or with a cost."""

from collections.abc import Iterator, Sequence

from orchestrator.spec.cost import COST_NAMES
from orchestrator.spec.plugin_checks import choice_problems
from orchestrator.spec.problems import Problem
from plugins.registry import nearest_name
from search_spaces.recipes import PluginChoice
from trainers.yaml_source import KeyPath

_FORMS = "must be a metric, or a metric and a cost such as [accuracy, latency]"


def metric_problems(metrics: Sequence[PluginChoice], scheduler: PluginChoice | None, at: KeyPath) -> Iterator[Problem]:
    """Yield what is wrong with a study's metric and cost, and a scheduler that would have to compare by both."""
    names = [choice.name for choice in metrics]
    if len(names) > 2:
        yield Problem(at, f"{_FORMS}, but got {len(names)} names ({', '.join(names)}). Remove the others.")
        return
    if names[0] in COST_NAMES:
        yield Problem(at, f"{_FORMS}, but the first is the cost {names[0]!r}. Put the metric before it.")
        return
    yield from choice_problems("metrics", metrics[0], at)
    if len(names) == 1:
        return
    cost = metrics[1]
    if cost.name not in COST_NAMES:
        nearest = nearest_name(cost.name, COST_NAMES)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        yield Problem((*at, 1), f"must be one of the costs {', '.join(COST_NAMES)}, but got {cost.name!r}.{hint}")
    elif cost.settings:
        yield Problem((*at, 1), f"{cost.name!r} has no settings, but got {', '.join(cost.settings)}. Remove them.")
    if scheduler is not None:
        yield Problem(
            ("engine", "scheduler"),
            f"a scheduler compares trials by one metric, but the study has two objectives ({', '.join(names)}). Remove "
            "the scheduler, or the cost from `metric`.",
        )


def limit_problem(limit: dict[str, float] | None, metrics: Sequence[PluginChoice]) -> str | None:
    """Why a limit does not fit a study's metric; `None` if it does."""
    if limit is None:
        return None
    cost = metrics[1].name if len(metrics) == 2 else None
    if cost is None:
        return (
            f"needs a study that weighs a cost, such as `metric: [{metrics[0].name}, {next(iter(limit))}]`, but its "
            f"metric is {metrics[0].name!r} alone. Add the cost, or remove `limit`."
        )
    if list(limit) != [cost]:
        return f"must limit the cost of the study's metric, {cost!r}, but got {', '.join(limit)}."
    return None
