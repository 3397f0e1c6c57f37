"""Draws the figures of a train stage's search, and of the averages of its best trial."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.engines.interfaces import Search
from orchestrator.stages.context import StageContext
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Dimension, Point


def draw_search(
    context: StageContext,
    search: Search,
    dimensions: Sequence[Dimension],
    ordered: Sequence[TrialRecord],
    best: TrialRecord,
    base: Sequence[Point],
) -> tuple[Path, ...]:
    """Draw the figures in which there is something to see.

    Args:
        context: The context of the stage.
        search: Its search.
        dimensions: Dimensions of the search.
        ordered: Trials with a result, by the first objective, best first.
        best: The chosen trial; with two objectives, one of the front.
        base: The points with the base recipe.
    """
    from orchestrator.engines.importance import importances
    from orchestrator.reports.search_plots import (
        SearchedTrial,
        metric_against_cost,
        parallel_coordinates,
        recipe_importance,
        search_history,
    )

    metric, folder, (objective, *others) = context.metric, context.folder, search.objectives
    costs = ("parameters", *(other.metric for other in others if other.metric != "parameters"))
    sizes = _names_by_size(ordered)
    usable = {trial.number for trial in ordered}
    shown = [
        SearchedTrial(
            number=trial.number,
            value=trial.metrics.get(objective.metric) if trial.number in usable else None,
            costs={name: trial.metrics[name] for name in costs if name in trial.metrics},
            point={**trial.point, "topology": sizes.get(str(trial.point["topology"]), "")},
        )
        for trial in context.store.trials(context.stage.id)
        if trial.ended_at is not None
    ]
    shares = importances(dimensions, ordered, objective)
    num_whole = sum(trial.state == "complete" for trial in ordered)
    with_base = frozenset(trial.number for trial in ordered if trial.point in base)
    names = ("search-history", "importance", "all-trials")
    history, importance, everything = (folder / f"{name}.png" for name in names)
    by_cost = {name: folder / f"metric-and-{name.replace('_', '-')}.png" for name in costs}
    drawn = {
        **{path: metric_against_cost(shown, best.number, metric, path, cost=name) for name, path in by_cost.items()},
        history: search_history(shown, metric, history, base=with_base),
        importance: recipe_importance(shares, num_whole, metric, importance),
        everything: parallel_coordinates(shown, best.number, metric, everything),
    }
    return tuple(path for path, is_drawn in drawn.items() if is_drawn)


def draw_averages(context: StageContext, gains: Sequence[tuple[str, float]]) -> tuple[Path, ...]:
    """Draw the gain of each average, if they differ.

    Args:
        context: The context of the averaging stage.
        gains: Method with its settings, and its gain.
    """
    from orchestrator.reports.search_plots import averaging_gains

    path = context.folder / "averaging-gains.png"
    return (path,) if averaging_gains(gains, context.metric, path) else ()


def _names_by_size(trials: Sequence[TrialRecord]) -> dict[str, str]:
    """A short name of each topology for a figure: its number of parameters, with a letter if several have the same."""
    from orchestrator.tracking.names import count_text

    sizes = {str(trial.point["topology"]): trial.metrics.get("parameters", 0.0) for trial in trials}
    names: dict[str, str] = {}
    for topology in sorted(sizes, key=lambda one: (sizes[one], one)):
        name = count_text(sizes[topology])
        twins = sum(one == name or one.startswith(f"{name} ") for one in names.values())
        names[topology] = name if not twins else f"{name} {'bcdefghijklmnopqrstuvwxyz'[min(twins, 25) - 1]}"
    return names
