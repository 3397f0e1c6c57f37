"""Finds plug-ins by entry point, whether ours or another package's. Listing plug-ins imports none of them.

In addition, each file in the folder of saved formulas is a proxy, named after the file.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from search_spaces.base import SearchSpace, Topology
from search_spaces.numbers import MAX_WHOLE, TRUTH_VALUE, truth_value_problem

KINDS = (
    "spaces",
    "models",
    "proxies",
    "samplers",
    "schedules",
    "curricula",
    "optimizers",
    "rates",
    "losses",
    "metrics",
    "augmentations",
    "stopping",
    "averaging",
)
"""Plug-in kinds; the entry-point group of a kind is `vitsearch.KIND`."""


FORMULA_FOLDER_VARIABLE = "VITSEARCH_FORMULA_FOLDER"
"""Environment variable that holds the folder of saved formulas. `use_formulas` sets it; worker processes inherit it."""
FORMULA_SUFFIX = ".txt"
FORMULA_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Pattern of the names of saved formulas. Other files in the folder are ignored."""


class UnknownPluginError(ValueError):
    """No plug-in of this kind has this name.

    Attributes:
        kind: One of `KINDS`.
        name: The requested name.
        nearest: The most similar installed name, or `None`.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        self.nearest = nearest_name(name, available(kind))
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        installed = ", ".join(sorted(available(kind))) or "none"
        super().__init__(f"must be an installed plug-in of the kind {kind} ({installed}), but got {name!r}.{hint}")


class DuplicatePluginError(RuntimeError):
    """Two packages, or a package and a saved formula, declare the same plug-in name."""


class SavedFormula(EntryPoint):
    """A saved formula, presented as an entry point of the proxy that evaluates formulas."""

    path: Path

    def __init__(self, path: Path) -> None:
        super().__init__(path.stem, "plugins.proxies.saved_formulas:load_formula", "vitsearch.proxies")
        vars(self).update(path=path)

    def load(self) -> Any:
        """Return the proxy class of the formula.

        Raises:
            ImportError: The file does not contain a formula.
        """
        load_formula = super().load()
        return load_formula(self.path)


class PluginSettingsError(ValueError):
    """The settings of a plug-in are invalid.

    Attributes:
        setting: Name of the invalid setting, or `None` if a combination of settings is invalid.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        self.setting = setting
        super().__init__(message)


@cache
def available(kind: str) -> dict[str, EntryPoint]:
    """Entry points of one kind by name, sorted. The proxies include saved formulas.

    Raises:
        DuplicatePluginError: Two different objects have the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in _declared().get(kind, ()):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise DuplicatePluginError(
                f"plug-in names must be unique, but {kind} {point.name!r} is declared as {other.value} by "
                f"{_provider(other)} and as {point.value} by {_provider(point)}. Uninstall one of them."
            )
        found[point.name] = point
    for formula in _saved_formulas() if kind == "proxies" else ():
        if formula.name in found:
            raise DuplicatePluginError(
                f"plug-in names must be unique, but proxies {formula.name!r} is declared by "
                f"{_provider(found[formula.name])} and by {_provider(formula)}. Uninstall the package or rename the "
                "file."
            )
        found[formula.name] = formula
    return dict(sorted(found.items()))


@cache
def _declared() -> dict[str, EntryPoints]:
    """Entry points of all installed packages by kind. Reading them takes longer than reading the formulas of a home."""
    found = entry_points()
    return {kind: found.select(group=f"vitsearch.{kind}") for kind in KINDS}


def use_formulas(folder: Path) -> None:
    """Make the formulas in a folder available as proxies, in this process and its child processes."""
    if os.environ.get(FORMULA_FOLDER_VARIABLE) != str(folder):
        os.environ[FORMULA_FOLDER_VARIABLE] = str(folder)
        _forget_formulas()


def clear_caches() -> None:
    """Forget the plug-ins found so far. Call it after saving a formula."""
    _declared.cache_clear()
    _forget_formulas()


def _forget_formulas() -> None:
    for cached in (available, load):
        cached.cache_clear()


def provider(kind: str, name: str) -> str:
    """Name and version of the package that declares the plug-in."""
    return _provider(_entry_point(kind, name))


@cache
def load(kind: str, name: str) -> Any:
    """Import one plug-in: its class, or its build function if the kind is `models`.

    Raises:
        UnknownPluginError: No plug-in has this name.
    """
    return _entry_point(kind, name).load()


def create(kind: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """Create a plug-in with the given settings.

    Raises:
        UnknownPluginError: No plug-in has this name.
        PluginSettingsError: A setting is unknown, has the wrong type, or is rejected by the plug-in.
    """
    cls = load(kind, name)
    given = dict(settings or {})
    known = setting_types(kind, name)
    for key in given:
        if key not in known:
            nearest = nearest_name(key, known)
            hint = f" Did you mean {nearest!r}?" if nearest else ""
            raise PluginSettingsError(
                f"{name!r} has the settings {', '.join(known) or '(none)'}, but got {key!r}.{hint}", setting=key
            )
        problem = truth_value_problem(given[key], known[key]) or _number_problem(given[key])
        if problem is not None:
            raise PluginSettingsError(f"setting {key!r} of {name!r}: {problem}", setting=key)
    try:
        return _adapter(cls).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            message = "must be given, but is missing. Add it."
        elif first["type"] == "literal_error":
            message = f"must be {first['ctx']['expected']}, but got {first['input']!r}.{_nearest_option(first)}"
        elif first["type"] not in ("value_error", TRUTH_VALUE):
            must = message.removeprefix("Input should be ").partition(",")[0]
            message = f"must be {must}, but got {first['input']!r}."
        setting = str(first["loc"][0]) if first["loc"] else None
        raise PluginSettingsError(
            f"setting {where!r} of {name!r}: {message}" if where else f"{name!r}: {message}", setting=setting
        ) from None


def _nearest_option(error: ErrorDetails) -> str:
    options = [part.strip("' ") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
    nearest = nearest_name(error["input"], options)
    return f" Did you mean {nearest!r}?" if nearest else " Choose one of these."


def _number_problem(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, but got {value}. Use another number."
    if isinstance(value, int | float) and abs(value) > MAX_WHOLE:
        shown = f"{value:,}" if isinstance(value, int) else value
        return f"must lie within {MAX_WHOLE:,} and its negative, but got {shown}. Use a smaller number."
    return None


def setting_types(kind: str, name: str) -> dict[str, Any]:
    """Names and types of a plug-in's settings."""
    return dict(_setting_types_of(load(kind, name)))


@lru_cache(maxsize=1000)
def _setting_types_of(cls: Any) -> dict[str, Any]:
    if isinstance(cls, type) and issubclass(cls, BaseModel):
        return {key: field.annotation for key, field in cls.model_fields.items()}
    if not dataclasses.is_dataclass(cls):
        return {}
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def nearest_name(name: str, names: Any) -> str | None:
    """The most similar of `names`, or `None` if none is similar."""
    matches = difflib.get_close_matches(str(name), [str(candidate) for candidate in names], n=1, cutoff=0.6)
    return matches[0] if matches else None


def create_space(name: str, settings: Mapping[str, Any] | None = None) -> SearchSpace:
    """Create a search space with the given settings."""
    space: SearchSpace = create("spaces", name, settings)
    return space


def parse_topology(identifier: str) -> Topology:
    """Parse `space:text`, the format of `Topology.id`.

    Raises:
        ValueError: The space is unknown, or the text does not have its format.
    """
    name, separator, text = identifier.partition(":")
    if not separator:
        raise ValueError(f"a topology is written as space:text, such as as-vit:8,2,3|..., but got {identifier!r}.")
    topology: Topology = load("spaces", name).parse(text)
    return topology


@lru_cache(maxsize=1024)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """The validator of a class. Building one takes longer than validating with it."""
    return TypeAdapter(cls)


def _entry_point(kind: str, name: str) -> EntryPoint:
    try:
        return available(kind)[name]
    except KeyError:
        raise UnknownPluginError(kind, name) from None


def _saved_formulas() -> list[SavedFormula]:
    folder = os.environ.get(FORMULA_FOLDER_VARIABLE)
    paths = Path(folder).glob(f"*{FORMULA_SUFFIX}") if folder else ()
    return [SavedFormula(path) for path in paths if FORMULA_NAME.fullmatch(path.stem)]


def _provider(point: EntryPoint) -> str:
    if isinstance(point, SavedFormula):
        return f"the formula in {point.path}"
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
