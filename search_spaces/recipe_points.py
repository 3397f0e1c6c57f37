"""Recipes as points of a search: the inverse of `RecipeSpace.decode`, as far as a recipe lies in the space."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from search_spaces.dimensions import Choice, Dimension, Integer, Point, Scalar, is_active
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice, Recipe, middle

_MISSING = object()


class EncodedRecipe(NamedTuple):
    """A point for a recipe."""

    point: Point
    outside: tuple[str, ...]
    """Dimensions whose value in the recipe lies outside the search, and which have their base value in the point."""


def encode_recipe(
    recipe: Recipe, dimensions: Sequence[Dimension], *, fixed: Mapping[str, Scalar] | None = None
) -> EncodedRecipe:
    """The point of a recipe in a search.

    Args:
        recipe: The recipe.
        dimensions: All dimensions of the search, parents before the dimensions that depend on them.
        fixed: Values of dimensions that are not part of a recipe, such as `topology`; `None` if they are outside.
    """
    given = fixed or {}
    point: Point = {}
    outside: list[str] = []
    for dimension in dimensions:
        if not is_active(dimension, point):
            continue
        value = given.get(dimension.name) if dimension.name in given else _value(recipe, dimension.name)
        found = _inside(dimension, value)
        if found is _MISSING:
            outside.append(dimension.name)
            point[dimension.name] = middle(dimension)
        else:
            point[dimension.name] = found  # type: ignore[assignment]
    return EncodedRecipe(point, tuple(outside))


def _value(recipe: Recipe, name: str) -> Any:
    """The value of a dimension in a recipe; `_MISSING` if the recipe has none."""
    _, field, *rest = name.split(".", 2)
    value = getattr(recipe, field, _MISSING)
    if field in PLUGIN_FIELDS:
        choices: tuple[PluginChoice, ...] = value if isinstance(value, tuple) else (value,)
        return _plugin_value(choices, rest[0] if rest else None)
    if not rest:
        return _MISSING if isinstance(value, Ramp) else value
    return value.model_dump().get(rest[0], _MISSING) if isinstance(value, Ramp) else _MISSING


def _plugin_value(choices: Sequence[PluginChoice], rest: str | None) -> Any:
    """The names of plug-ins, or with `rest`, such as `paced.start`, one of their settings."""
    label = "+".join(choice.name for choice in choices)
    if rest is None:
        return label
    for choice in choices:
        prefix = f"{label}." if len(choices) == 1 else f"{label}.{choice.name}."
        if rest.startswith(prefix):
            return choice.settings.get(rest.removeprefix(prefix), _MISSING)
    return _MISSING


def _inside(dimension: Dimension, value: Any) -> object:
    """The value as the dimension has it; `_MISSING` if it is not one of its values."""
    if isinstance(dimension, Choice):
        return next((option for option in dimension.options if option == value), _MISSING)
    if isinstance(value, bool) or not isinstance(value, int | float) or not dimension.low <= value <= dimension.high:
        return _MISSING
    if not isinstance(dimension, Integer):
        return float(value)
    is_step = value == int(value) and (int(value) - dimension.low) % dimension.step == 0
    return int(value) if is_step else _MISSING
