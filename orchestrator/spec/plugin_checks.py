"""Checks that the plug-ins named in a study are installed and accept their settings."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from orchestrator.spec.problems import Problem, found, range_problem
from orchestrator.spec.proxy_choices import parts_of
from orchestrator.spec.topology_checks import dimension_ends
from plugins import registry
from search_spaces.dimensions import Dimension, parse_dimension
from search_spaces.recipes import PluginChoice, decode_plugin, parse_plugin_dimensions
from trainers.yaml_source import KeyPath

_MAX_CORNERS = 256


def choice_problems(kind: str, choice: PluginChoice, at: KeyPath) -> Iterator[Problem]:
    """Yield a problem if a plug-in is not installed, cannot be imported or rejects its settings."""
    try:
        registry.create(kind, choice.name, choice.settings)
    except registry.UnknownPluginError as error:
        yield Problem(at, str(error))
    except ImportError as error:
        package = registry.provider(kind, choice.name)
        yield Problem(at, f"plug-in {choice.name!r} must be importable, but: {error}. Reinstall {package}.")
    except registry.PluginSettingsError as error:
        yield Problem(at if error.setting is None else (*at, error.setting), str(error))


def sampler_problems(sampler: PluginChoice, dimensions: Sequence[Dimension] | None, at: KeyPath) -> Iterator[Problem]:
    """Yield a problem if a sampler is invalid or cannot search `dimensions` (`None` if they could not be read)."""
    problems = list(choice_problems("samplers", sampler, at))
    yield from problems
    if problems or dimensions is None:
        return
    problem = registry.create("samplers", sampler.name, sampler.settings).problem(dimensions)
    if problem is not None:
        yield Problem(at, problem)


def proxy_problems(proxies: Sequence[PluginChoice], at: KeyPath) -> Iterator[Problem]:
    """Yield proxies that are invalid or named twice; the parts of a pool proxy are checked as well."""
    for index, proxy in enumerate(proxies):
        problems = list(choice_problems("proxies", proxy, (*at, index)))
        yield from problems
        if proxy.name in [other.name for other in proxies[:index]]:
            yield Problem((*at, index), f"each proxy must be named once, but got {proxy.name!r} again. Remove one.")
        for part in () if problems else parts_of(proxy.name):
            yield from choice_problems("proxies", PluginChoice(name=part), (*at, index))


def search_problems(
    kind: str, key: str, choices: Sequence[PluginChoice], at: KeyPath, *, listed: bool = True
) -> Iterator[Problem]:
    """Check plug-ins with searchable settings: each must accept every option and both ends of every range."""
    for index, choice in enumerate(choices):
        path = (*at, index) if listed else at
        if choice.name not in registry.available(kind):
            yield Problem(path, str(registry.UnknownPluginError(kind, choice.name)))
            continue
        in_ranges = list(_range_problems(choice, path))
        yield from in_ranges
        for corner in [] if in_ranges else plugin_corners(key, choice):
            yield from choice_problems(kind, corner, path)
    try:
        parse_plugin_dimensions(key, list(choices))
    except ValidationError as error:
        yield Problem(at, range_problem(error).message)
    except ValueError as error:
        yield Problem(at, str(error))


def _range_problems(choice: PluginChoice, at: KeyPath) -> Iterator[Problem]:
    for setting, value in choice.settings.items():
        try:
            is_fixed = parse_dimension(setting, value) is None
        except ValidationError as error:
            problem = range_problem(error)
            yield Problem((*at, setting, *problem.path), problem.message)
        except ValueError as error:
            yield Problem((*at, setting), str(error))
        else:
            if is_fixed and isinstance(value, Mapping):
                message = f"must be a value, a list of options or a range {{low, high}}, but got {found(value)}."
                yield Problem((*at, setting), message)


def plugin_corners(key: str, choice: PluginChoice) -> list[PluginChoice]:
    """The plug-in with every combination of the extremes of its ranges (up to a limit)."""
    base, dimensions = parse_plugin_dimensions(key, choice)
    if not dimensions:
        return [base]
    ends = [dimension_ends(dimension) for dimension in dimensions]
    names = [dimension.name for dimension in dimensions]
    points = itertools.islice(itertools.product(*ends), _MAX_CORNERS)
    decoded = (decode_plugin(key, dict(zip(names, values, strict=True))) for values in points)
    return [choice for choice in decoded if choice is not None]


def one_of(what: str, name: str, names: Sequence[str]) -> str:
    """The message for a name that is not in `names`, with the most similar of them."""
    nearest = registry.nearest_name(name, names)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return f"must be one of {what} ({', '.join(names)}), but got {found(name)}.{hint}"
