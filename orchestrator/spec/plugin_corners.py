"""A plug-in whose settings may be searched, at the extremes of its ranges."""

import itertools

from orchestrator.spec.topology_checks import dimension_ends
from search_spaces.recipes import PluginChoice, decode_plugin, parse_plugin_dimensions

_MAX_CORNERS = 256


def plugin_corners(key: str, choice: PluginChoice) -> list[PluginChoice]:
    """The plug-in at the extremes of its ranges, in all combinations (up to a limit)."""
    base, dimensions = parse_plugin_dimensions(key, choice)
    if not dimensions:
        return [base]
    ends = [dimension_ends(dimension) for dimension in dimensions]
    names = [dimension.name for dimension in dimensions]
    points = itertools.islice(itertools.product(*ends), _MAX_CORNERS)
    decoded = (decode_plugin(key, dict(zip(names, values, strict=True))) for values in points)
    return [choice for choice in decoded if choice is not None]
