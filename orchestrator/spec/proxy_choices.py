"""The proxies that a stage names: which are scored, in which direction each is better, and scores within a pool.

A pool proxy (`plugins.protocols.PoolProxy`) is never scored itself: its parts are, and its values follow from the
scores of the parts over all topologies together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from plugins import registry
from plugins.protocols import PoolProxy
from search_spaces.recipes import PluginChoice

Direction = Literal["maximize", "minimize"]
ALL = "all"
"""Stands in a list of proxies for every installed one that needs no settings."""


def expand_all(choices: Iterable[PluginChoice]) -> tuple[PluginChoice, ...]:
    """The choices with `all` replaced by the installed proxies that are not named beside it.

    Saved formulas are not among them: on the table that one was searched on, its verdict would be too good.
    """
    given = list(choices)
    named = {choice.name for choice in given}
    expanded: list[PluginChoice] = []
    for choice in given:
        if choice.name != ALL or choice.settings:
            expanded.append(choice)
            continue
        installed = registry.available("proxies")
        others = (
            name
            for name, point in installed.items()
            if name not in named and not isinstance(point, registry.SavedFormula)
        )
        expanded += [PluginChoice(name=name) for name in others if _needs_no_settings(name)]
    return tuple(expanded)


def proxy_directions(proxies: Iterable[str]) -> dict[str, Direction]:
    """The direction in which each proxy is better."""
    return {name: registry.load("proxies", name).direction for name in proxies}


def is_pool_proxy(name: str) -> bool:
    """Whether the installed proxy of that name is defined only within a pool of topologies."""
    return isinstance(registry.load("proxies", name), PoolProxy)  # the class has the members too


def is_random(name: str) -> bool:
    """Whether another seed gives another score: a proxy without `repeats` is exact."""
    return "repeats" in registry.setting_types("proxies", name)


def scored_choices(choices: Sequence[PluginChoice]) -> tuple[PluginChoice, ...]:
    """What is scored topology by topology: the parts stand for a pool proxy, with their own settings where named."""
    scored = {choice.name: choice for choice in choices if not is_pool_proxy(choice.name)}
    for choice in choices:
        for part in parts_of(choice.name):
            scored.setdefault(part, PluginChoice(name=part))
    return tuple(scored.values())


def parts_of(name: str) -> tuple[str, ...]:
    """The proxies that a pool proxy is made of; none for any other."""
    return tuple(registry.load("proxies", name).parts) if is_pool_proxy(name) else ()


def with_repeats(choices: Iterable[PluginChoice], repeats: int | None) -> tuple[PluginChoice, ...]:
    """The choices with another number of repeats, if they have this setting."""
    if repeats is None:
        return tuple(choices)
    return tuple(
        choice.model_copy(update={"settings": {**choice.settings, "repeats": repeats}})
        if is_random(choice.name)
        else choice
        for choice in choices
    )


def orient(name: str, scores: Iterable[float]) -> list[float]:
    """Scores of a proxy, turned so that more is better."""
    sign = 1.0 if registry.load("proxies", name).direction == "maximize" else -1.0
    return [sign * score for score in scores]


def pool_scores(choice: PluginChoice, scores: Mapping[str, Sequence[float]]) -> list[float]:
    """The values of a pool proxy over all topologies.

    Args:
        choice: The pool proxy.
        scores: Per part, one score per topology, as the part gave it; not finite if it failed.
    """
    proxy: PoolProxy = registry.create("proxies", choice.name, choice.settings)
    return proxy.combine({part: orient(part, scores[part]) for part in proxy.parts})


def resolved_settings(choice: PluginChoice) -> Any:
    """All settings of a proxy as JSON data, its defaults too: what two ways of writing the same have in common.

    Raises:
        ValueError: No such proxy is installed, or it does not take the settings.
    """
    from pydantic import TypeAdapter

    proxy = registry.create("proxies", choice.name, choice.settings)
    known = registry.setting_types("proxies", choice.name)
    return {name: TypeAdapter(known[name]).dump_python(getattr(proxy, name), mode="json") for name in sorted(known)}


def _needs_no_settings(name: str) -> bool:
    try:
        registry.create("proxies", name)
    except registry.PluginSettingsError:
        return False
    except ImportError:
        return True  # reported when the study is checked
    return True
