"""Compares two searches of the same recipe: whether the newer one contains every point of the older one."""

from collections.abc import Iterator
from typing import NamedTuple

from search_spaces.dimensions import Choice, Condition, Dimension, Integer, Point, Real, Scalar
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, Recipe, RecipeSpace


class Widening(NamedTuple):
    """What becomes of the points of an older search in a newer one."""

    problems: tuple[tuple[str, str], ...]
    """Names of recipe fields, each with the reason why the newer search does not contain the older one."""
    filled: Point
    """Values that older points lack: fields that were fixed and are now searched."""
    is_wider: bool
    """Whether the newer search has other dimensions."""


def widen(old: RecipeSpace, new: RecipeSpace) -> Widening:
    """Compare two recipe spaces.

    A range may become wider, a choice may get more options, and a fixed value may become a choice or a range that
    contains it.
    """
    before = {dimension.name: dimension for dimension in old.dimensions}
    after = {dimension.name: dimension for dimension in new.dimensions}
    problems: list[tuple[str, str]] = []
    filled: Point = {}
    for name, dimension in before.items():
        reason = "is no longer searched" if name not in after else narrowing(dimension, after[name])
        if reason is not None:
            problems.append((_field(name), reason))
    searched_before, searched_after = ({_field(name) for name in names} for names in (before, after))
    for name, dimension in after.items():
        if name in before:
            continue
        reason = None
        if _field(name) in searched_before:
            if not _is_of_new_option(dimension, before):
                reason = f"searches `{name}`, which earlier trials do not have"
        else:
            reason = _fill(old.base, dimension, filled)
        if reason is not None:
            problems.append((_field(name), reason))
    problems += _changed_values(old.base, new.base, searched_before | searched_after)
    unique = tuple(dict.fromkeys(problems))
    return Widening(unique, filled, is_wider=before != after)


def narrowing(old: Dimension, new: Dimension) -> str | None:
    """Why a dimension does not contain every value of its older form; `None` if it does."""
    if old.when != new.when:
        return "depends on another value than before"
    if isinstance(old, Choice):
        missing = [option for option in old.options if not holds(new, option)]
        return f"no longer has the option {missing[0]!r}" if missing else None
    if isinstance(new, Choice) or old.kind != new.kind:
        return f"was a range of {'integers' if isinstance(old, Integer) else 'real numbers'}"
    if old.log != new.log:
        return f"must keep its scale (log: {str(old.log).lower()})"
    if new.low > old.low or new.high < old.high:
        return f"must contain the earlier range, {old.low:g} to {old.high:g}"
    if isinstance(old, Integer) and isinstance(new, Integer) and not _is_finer(old, new):
        return f"must contain the values {old.low}, {old.low + old.step}, ... of the earlier range"
    return None


def holds(dimension: Dimension, value: Scalar) -> bool:
    """Whether a dimension has a value. 1, 1.0 and true differ, as in the options of a choice."""
    if isinstance(dimension, Choice):
        return any(repr(option) == repr(value) for option in dimension.options)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not dimension.low <= value <= dimension.high:
        return False
    if isinstance(dimension, Real):
        return isinstance(value, float)
    return isinstance(value, int) and (value - dimension.low) % dimension.step == 0


def _is_finer(old: Integer, new: Integer) -> bool:
    return old.step % new.step == 0 and (old.low - new.low) % new.step == 0


def _is_of_new_option(dimension: Dimension, before: dict[str, Dimension]) -> bool:
    """Whether a dimension belongs to an option that its choice did not have, so that no earlier point has it."""
    when = dimension.when
    if not isinstance(when, Condition):
        return False
    parent = before.get(when.name)
    return isinstance(parent, Choice) and when.equals not in parent.options


def _fill(base: Recipe, dimension: Dimension, filled: Point) -> str | None:
    """Add the value that a recipe with fixed fields has in a new dimension; returns the reason if it has none there."""
    if dimension.when is not None and not dimension.when.holds(filled):
        return None
    values = list(_fixed_value(base, dimension.name))
    if not values:
        return f"searches `{dimension.name}`, which earlier trials do not have"
    value = float(values[0]) if isinstance(dimension, Real) and type(values[0]) is int else values[0]
    if not holds(dimension, value):
        return f"must contain the earlier value {values[0]!r}"
    filled[dimension.name] = value
    return None


def _fixed_value(base: Recipe, name: str) -> Iterator[Scalar]:
    """The value of a dimension in a recipe, if the recipe states it."""
    _, field, *inner = name.split(".", 2)
    value = getattr(base, field)
    if field in PLUGIN_FIELDS:
        choices = value if isinstance(value, tuple) else (value,)
        if not inner:
            yield "+".join(choice.name for choice in choices)
        for choice in choices:
            prefix = choice.name if len(choices) == 1 else "+".join(one.name for one in choices) + f".{choice.name}"
            for setting, given in choice.settings.items():
                if inner == [f"{prefix}.{setting}"]:
                    yield given
    elif isinstance(value, Ramp):
        if inner and inner[0] in value.model_dump():
            yield value.model_dump()[inner[0]]
    elif not inner:
        yield value


def _changed_values(old: Recipe, new: Recipe, searched: set[str]) -> list[tuple[str, str]]:
    """Fields that are fixed in both recipes, to different values."""
    return [
        (name, f"was fixed at {_shown(getattr(old, name))}")
        for name in Recipe.model_fields
        if name not in searched and getattr(old, name) != getattr(new, name)
    ]


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(choice.name for choice in value)
    return str(getattr(value, "name", value))


def _field(dimension: str) -> str:
    """The recipe field of a dimension: `learning_rate` of `recipe.learning_rate`."""
    return dimension.split(".")[1]
