"""Draws the figures of a train stage's search, and of the averages of its best trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.engines.interfaces import Objective
from orchestrator.stages.context import StageContext
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import DecidingMetric
from search_spaces.dimensions import Dimension

if TYPE_CHECKING:
    from orchestrator.reports.search_plots import SearchedTrial


class SearchView(NamedTuple):
    """What the figures of a search show."""

    trials: list["SearchedTrial"]
    best: int
    """Number of the best trial."""
    base: frozenset[int]
    """Numbers of the trials with the base recipe."""
    shares: Mapping[str, float]
    """Importance of each dimension."""
    num_whole: int
    """Trials that ran to their end, from which the importances are estimated."""
    costs: tuple[str, ...]
    """Names of the costs to draw the metric against."""


def view_search(
    trials: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    dimensions: Sequence[Dimension],
    *,
    best: int,
    base: frozenset[int],
) -> SearchView:
    """What the figures of a train stage's search show.

    Args:
        trials: All trials of the stage.
        objectives: Objectives of the search, the metric that decides first.
        dimensions: Dimensions of the search.
        best: Number of the best trial.
        base: Numbers of the trials with the base recipe.
    """
    from orchestrator.engines.importance import importances
    from orchestrator.reports.search_plots import SearchedTrial

    objective, *others = objectives
    costs = ("parameters", *(other.metric for other in others if other.metric != "parameters"))
    usable = [trial for trial in trials if trial.is_usable]
    sizes = _names_by_size(usable)
    return SearchView(
        trials=[
            SearchedTrial(
                number=trial.number,
                value=trial.metrics.get(objective.metric) if trial.is_usable else None,
                costs={name: trial.metrics[name] for name in costs if name in trial.metrics},
                point={**trial.point, "topology": sizes.get(str(trial.point["topology"]), "")},
            )
            for trial in trials
            if trial.ended_at is not None
        ],
        best=best,
        base=base,
        shares=importances(dimensions, usable, objective),
        num_whole=sum(trial.state == "complete" for trial in usable),
        costs=costs,
    )


def draw_search(view: SearchView, metric: DecidingMetric, folder: Path, *, suffix: str = ".png") -> tuple[Path, ...]:
    """Draw the figures of a search in which there is something to see.

    Args:
        view: What to draw.
        metric: The metric that decides.
        folder: Receives the files.
        suffix: `.png`, or `.svg` for a page.
    """
    from orchestrator.reports.search_plots import (
        metric_against_cost,
        parallel_coordinates,
        recipe_importance,
        search_history,
    )

    by_cost = {name: folder / f"metric-and-{name.replace('_', '-')}{suffix}" for name in view.costs}
    names = ("search-history", "importance", "all-trials")
    history, importance, everything = (folder / f"{name}{suffix}" for name in names)
    drawn = {
        **{
            path: metric_against_cost(view.trials, view.best, metric, path, cost=cost) for cost, path in by_cost.items()
        },
        history: search_history(view.trials, metric, history, base=view.base),
        importance: recipe_importance(view.shares, view.num_whole, metric, importance),
        everything: parallel_coordinates(view.trials, view.best, metric, everything),
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
