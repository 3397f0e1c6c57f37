"""Checks of stopping criteria that depend on the training that they end."""

from collections.abc import Iterator, Sequence

from orchestrator.spec.plugin_checks import plugin_corners
from plugins import registry
from plugins.protocols import earliest_stop
from search_spaces.recipes import PluginChoice, describe_plugin

CRITERION_KEY = "stopping.criterion"
"""Name of the dimension that selects a stopping criterion."""


def idle_criteria(stage: str, criteria: Sequence[PluginChoice], *, epochs: int) -> Iterator[str]:
    """Name the criteria that cannot end a training of so many epochs early, with none of their settings."""
    late = []
    for criterion in criteria:
        if criterion.name not in registry.available("stopping"):
            continue
        corners = plugin_corners(CRITERION_KEY, criterion)
        stops = [earliest_stop(registry.create("stopping", corner.name, corner.settings)) for corner in corners]
        first = min(stops, default=1)
        if first >= epochs:
            late.append(f"{describe_plugin(corners[stops.index(first)])} (not before epoch {first})")
    if late:
        count = "1 epoch" if epochs == 1 else f"{epochs} epochs"
        yield (
            f"stage {stage!r} cannot end trainings of {count} early with {' and '.join(late)}. Choose smaller settings "
            "or more epochs"
        )
