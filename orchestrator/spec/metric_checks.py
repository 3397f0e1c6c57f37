"""Checks of a study's `metric`: one that compares models, alone or with a cost."""

from collections.abc import Iterator, Sequence

from orchestrator.spec.plugin_checks import choice_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.yaml_source import KeyPath
from search_spaces.recipes import PluginChoice


def metric_problems(metrics: Sequence[PluginChoice], at: KeyPath) -> Iterator[Problem]:
    """Yield a problem if the metric is not an installed plug-in, or if there are several."""
    if len(metrics) > 1:
        names = ", ".join(choice.name for choice in metrics)
        yield Problem(at, f"must be one metric, but got {len(metrics)} ({names}). Name one.")
        return
    yield from choice_problems("metrics", metrics[0], at)
