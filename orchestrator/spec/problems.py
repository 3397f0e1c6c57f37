"""Translates pydantic's validation errors into vitsearch's messages."""

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from plugins.registry import nearest_name
from search_spaces.dimensions import Integer, Real
from search_spaces.numbers import TRUTH_VALUE
from search_spaces.ramps import NUMBER_TAG, RAMP_TAG, Bounds
from search_spaces.recipes import PluginChoice
from trainers.yaml_source import KeyPath

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""Names of stages, and of studies in their owner's files."""
STUDY_PATTERN = r"^(?:[a-z0-9][a-z0-9._-]{0,31}~)?[a-z0-9][a-z0-9._-]{0,62}$"
"""Names of studies in a database: `OWNER~NAME` if the study belongs to another owner than that of the home."""
_NAME_WORDS = "1 to 63 lower-case letters, digits, dots, dashes or underscores, the first a letter or digit"


class Problem(NamedTuple):
    """One mistake in a study file."""

    path: KeyPath
    """Path of the value, or of the missing or unknown key."""
    message: str
    is_of_meant_key: bool = False
    """Whether it is about the value of a misspelt key, which is a mistake itself, as of the key that was meant."""


def first_problem(error: ValidationError, model: type[BaseModel], tags: Mapping[str, type[BaseModel]]) -> Problem:
    """The mistake to report first: an unknown key comes before a missing one, because it often explains it.

    Args:
        error: The error that pydantic raised.
        model: The validated model.
        tags: Members of the tagged union in the model's lists, by tag.
    """
    errors = error.errors(include_url=False)
    chosen = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    return _problem(chosen, model, tags)


def all_problems(error: ValidationError, model: type[BaseModel], tags: Mapping[str, type[BaseModel]]) -> list[Problem]:
    """All mistakes, the one of `first_problem` first. A missing key that an unknown one explains is left out.

    Args:
        error: The error that pydantic raised.
        model: The validated model.
        tags: Members of the tagged union in the model's lists, by tag.
    """
    errors = error.errors(include_url=False)
    misspelt = {
        (*item["loc"][:-1], nearest_name(str(item["loc"][-1]), [str(key["loc"][-1])]))
        for item in errors
        for key in errors
        if item["type"] == "extra_forbidden" and key["type"] == "missing" and item["loc"][:-1] == key["loc"][:-1]
    }
    others = [
        item
        for item in errors
        if not _is_only_invalid(item) and (item["type"] != "missing" or item["loc"] not in misspelt)
    ]
    found_problems = [first_problem(error, model, tags), *(_problem(item, model, tags) for item in others)]
    return distinct(found_problems)


def _is_only_invalid(error: ErrorDetails) -> bool:
    """Whether a list is too short for pydantic only because it does not count entries that have mistakes."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """Problems without those at the same place as an earlier one, or around it: they have the same cause."""
    kept: list[Problem] = []
    for problem in problems:
        size = len(problem.path)
        same = [one for one in kept if one.path == problem.path or (size > 2 and one.path[:size] == problem.path)]
        if not any(problem == one or not problem.is_of_meant_key for one in same):
            kept.append(problem)
    return kept


def range_problem(error: ValidationError) -> Problem:
    """The mistake in a range or list of options, with its path relative to that range or list."""
    first = error.errors(include_url=False)[0]
    ranges: dict[str, type[BaseModel]] = {"Integer": Integer, "Real": Real}
    if error.title in ranges:
        return first_problem(error, ranges[error.title], {})
    if first["loc"] == ("options",):
        return Problem((), "a list of options must not be empty, but got an empty list. Name at least one option.")
    if first["loc"][:1] == ("options",):
        value = found(first["input"])
        return Problem(first["loc"][1:2], f"an option must be a number, text, true, false or null, but got {value}.")
    return Problem((), plain(error))


def found(value: Any) -> str:
    """A value as shown in a message."""
    if isinstance(value, Mapping):
        return f"a mapping ({', '.join(map(str, value)) or 'empty'})"[:80]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(error: ValueError) -> str:
    """The message of an error without pydantic's additions."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    return str(error)


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a key that is not in `known`."""
    return f"must be one of the keys {', '.join(known)}, but got {key!r}.{_hint(key, known)}"


def _hint(name: Any, names: Sequence[str]) -> str:
    nearest = nearest_name(str(name), names)
    return f" Did you mean {nearest!r}?" if nearest else ""


def _problem(error: ErrorDetails, model: type[BaseModel], tags: Mapping[str, type[BaseModel]]) -> Problem:
    loc = tuple(part for part in error["loc"] if part not in (NUMBER_TAG, RAMP_TAG))
    path, kind, value = _without_tag(loc, tags), error["type"], error["input"]
    if kind == "union_tag_invalid":
        return Problem(
            (*path, "stage"),
            f"must be one of {', '.join(tags)}, but got {_tag(error)!r}.{_hint(_tag(error), list(tags))}",
        )
    if kind in ("union_tag_not_found", "model_attributes_type"):
        return Problem(path, f"must name its stage (`stage: ...`, one of {', '.join(tags)}), but got {found(value)}.")
    owner = _owner(model, loc[:-1], tags)
    if kind == "extra_forbidden" and owner is not None:
        known = [field.alias or name for name, field in owner.model_fields.items()]
        return Problem(path, unknown_key(str(path[-1]), known))
    if kind == "missing" and owner is not None:
        field = owner.model_fields.get(str(path[-1]))
        what = f" ({field.description})" if field is not None and field.description else ""
        return Problem(path, f"must be given{what}, but is missing. Add it.")
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] in (NAME_PATTERN, STUDY_PATTERN):
        return Problem(path, f"must be {_NAME_WORDS}, but got {found(value)}.")
    if kind == TRUTH_VALUE:
        return Problem((*path, error["ctx"]["field"]), error["ctx"]["problem"])
    if kind == "value_error":
        return Problem(path, error["msg"].removeprefix("Value error, "))
    expected = _expected_at(model, loc, tags)
    return Problem(path, f"must be {expected or _from_pydantic(error)}, but got {found(value)}.{_options_hint(error)}")


def _without_tag(loc: tuple[int | str, ...], tags: Mapping[str, Any]) -> KeyPath:
    """Remove the union tag, which pydantic inserts after the index of the list entry."""
    return tuple(part for at, part in enumerate(loc) if not (at and isinstance(loc[at - 1], int) and part in tags))


def _tag(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("tag", ""))


def _options_hint(error: ErrorDetails) -> str:
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    return _hint(
        error["input"], [part.strip("' ") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
    )


def _from_pydantic(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Input should be ").partition(", unable")[0].rstrip(".")


def _owner(
    model: type[BaseModel], loc: tuple[int | str, ...], tags: Mapping[str, type[BaseModel]]
) -> type[BaseModel] | None:
    """The model that validated the value at `loc`; `None` if no model did."""
    current: type[BaseModel] | None = model
    for at, part in enumerate(loc):
        if at and isinstance(loc[at - 1], int) and part in tags:
            current = tags[str(part)]
        elif isinstance(part, int):
            continue
        else:
            field = current.model_fields.get(part) if current is not None else None
            current = None if field is None else _model_in(field.annotation)
    return current


def model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model, among `model` and those in it, that validated the value at `loc`; `None` if no model did."""
    return _owner(model, loc, {})


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found_models = [inner for argument in get_args(annotation) if (inner := _model_in(argument)) is not None]
    return found_models[0] if len(found_models) == 1 else None


def _expected_at(model: type[BaseModel], loc: tuple[int | str, ...], tags: Mapping[str, type[BaseModel]]) -> str | None:
    if not loc:
        return "a mapping of keys to values"
    is_entry = isinstance(loc[-1], int)
    *outer, name = loc[:-1] if is_entry else loc
    owner = _owner(model, tuple(outer), tags)
    field = None if owner is None else owner.model_fields.get(str(name))
    if field is None:
        return "a mapping of keys to values" if name in tags else None
    if not is_entry:
        return _expected(field.annotation, field.metadata)
    arguments = get_args(field.annotation)
    return _expected(arguments[0], ()) if arguments else None


def _expected(annotation: Any, metadata: Sequence[Any]) -> str | None:
    """The values that a field accepts, in words, such as `an integer of at least 1`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part for item in arguments[1:] for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _expected(arguments[0], [*metadata, *inner])
    bounds = next((item for item in metadata if isinstance(item, Bounds)), None)
    if bounds is not None:
        number = _expected(int if bounds.whole else float, bounds.as_metadata())
        return f"{number}, or a function of progress {{from: ..., to: ...}}"
    if origin in (Union, UnionType):
        inner_types = [argument for argument in arguments if argument is not NoneType]
        words = _expected(inner_types[0], metadata) if len(inner_types) == 1 else None
        return words if words is None or len(inner_types) == len(arguments) else f"{words}, or null"
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if annotation is PluginChoice:
        return "the name of a plug-in, or {name: ..., SETTING: ...}"
    if annotation in (int, float):
        return " ".join(["an integer" if annotation is int else "a number", *_bounds(metadata)])
    if annotation in (str, bool):
        return "text" if annotation is str else "true or false"
    if origin is tuple:
        least = next((item.min_length for item in metadata if isinstance(item, MinLen)), 0)
        return f"a list of at least {least}" if least else "a list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a mapping of keys to values"
    return None


def _bounds(metadata: Sequence[Any]) -> list[str]:
    words = {Ge: ("of at least", "ge"), Gt: ("above", "gt"), Le: ("of at most", "le"), Lt: ("below", "lt")}
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found_bounds = [
        f"{words[type(item)][0]} {getattr(item, words[type(item)][1])}" for item in flat if type(item) in words
    ]
    return [" and ".join(found_bounds)] if found_bounds else []
