"""The proxies of a stage: which of them are scored, the direction of each, and the values of pool proxies.

A pool proxy (`plugins.protocols.PoolProxy`) is never scored directly. Its parts are scored, and its values are
computed from the scores of the parts over all topologies.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from plugins import registry
from plugins.protocols import PoolProxy, TrainingProxy
from search_spaces.recipes import PluginChoice

Direction = Literal["maximize", "minimize"]
ALL = "all"
"""In a list of proxies, stands for every installed training-free proxy that needs no settings."""


_FORMER_DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"0.1.0": {"dss": {"square_layers": False}}}
"""By version, settings of proxies whose defaults have changed since then."""


def expand_all(choices: Iterable[PluginChoice]) -> tuple[PluginChoice, ...]:
    """Replace `all` by the installed training-free proxies that the list does not name explicitly.

    Saved formulas are excluded: their verdict would be too good on the table on which they were searched. Proxies
    that train for a few steps (`plugins.protocols.TrainingProxy`) are excluded, too: their work counts; and proxies
    that measure time, which other load on the machine changes.
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
            if name not in named and not isinstance(point, registry.SavedFormula) and not is_training_proxy(name)
        )
        expanded += [PluginChoice(name=name) for name in others if _needs_no_settings(name) and not _is_timing(name)]
    return tuple(expanded)


def proxy_directions(proxies: Iterable[str]) -> dict[str, Direction]:
    """For each proxy, whether higher or lower scores are better."""
    return {name: registry.load("proxies", name).direction for name in proxies}


def is_pool_proxy(name: str) -> bool:
    """Whether the installed proxy of that name is only defined for a pool of topologies."""
    return isinstance(registry.load("proxies", name), PoolProxy)  # the class also has these members


def is_training_proxy(name: str) -> bool:
    """Whether the installed proxy of that name trains for a few steps."""
    try:
        return isinstance(registry.load("proxies", name), TrainingProxy)
    except ImportError:
        return False  # reported when the study is checked


def is_random(name: str) -> bool:
    """Whether the score may depend on the seed: unless its class has `is_exact = True`."""
    return not getattr(registry.load("proxies", name), "is_exact", False)


def fitted_to(name: str) -> tuple[str, ...]:
    """Digests of the accuracies that the proxy was fitted to (`repeated_truths.accuracies_digest`)."""
    return tuple(getattr(registry.load("proxies", name), "fitted_to", ()))


def scored_choices(choices: Sequence[PluginChoice]) -> tuple[PluginChoice, ...]:
    """The proxies to score for each topology: pool proxies are replaced by their parts.

    A part that the stage also names keeps its settings.
    """
    scored = {choice.name: choice for choice in choices if not is_pool_proxy(choice.name)}
    for choice in choices:
        for part in parts_of(choice.name):
            scored.setdefault(part, PluginChoice(name=part))
    return tuple(scored.values())


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a pool proxy; empty for any other proxy."""
    return tuple(registry.load("proxies", name).parts) if is_pool_proxy(name) else ()


def with_repeats(choices: Iterable[PluginChoice], repeats: int | None) -> tuple[PluginChoice, ...]:
    """Set `repeats` in every choice that has this setting."""
    if repeats is None:
        return tuple(choices)
    return tuple(
        choice.model_copy(update={"settings": {**choice.settings, "repeats": repeats}})
        if "repeats" in registry.setting_types("proxies", choice.name)
        else choice
        for choice in choices
    )


def with_former_defaults(choices: Iterable[PluginChoice], version: str) -> tuple[PluginChoice, ...]:
    """Choices with the defaults of an earlier version, where they have changed and the choice does not set them."""
    former = _FORMER_DEFAULTS.get(version, {})
    return tuple(
        choice.model_copy(update={"settings": {**former[choice.name], **choice.settings}})
        if choice.name in former
        else choice
        for choice in choices
    )


def orient(name: str, scores: Iterable[float]) -> list[float]:
    """Scores of a proxy with the sign changed if necessary, so that higher is better."""
    sign = 1.0 if registry.load("proxies", name).direction == "maximize" else -1.0
    return [sign * score for score in scores]


def pool_scores(choice: PluginChoice, scores: Mapping[str, Sequence[float]]) -> list[float]:
    """The values of a pool proxy over all topologies.

    Args:
        choice: The pool proxy.
        scores: For each part, its raw score for each topology; not finite if scoring failed.
    """
    proxy: PoolProxy = registry.create("proxies", choice.name, choice.settings)
    return proxy.combine({part: orient(part, scores[part]) for part in proxy.parts})


def resolved_settings(choice: PluginChoice) -> Any:
    """All settings of a proxy as JSON data, including defaults, so that equivalent choices compare equal.

    Raises:
        ValueError: No such proxy is installed, or it rejects the settings.
    """
    from pydantic import TypeAdapter

    proxy = registry.create("proxies", choice.name, choice.settings)
    known = registry.setting_types("proxies", choice.name)
    return {name: TypeAdapter(known[name]).dump_python(getattr(proxy, name), mode="json") for name in sorted(known)}


def _is_timing(name: str) -> bool:
    try:
        return bool(getattr(registry.load("proxies", name), "is_timing", False))
    except ImportError:
        return False  # reported when the study is checked


def _needs_no_settings(name: str) -> bool:
    try:
        registry.create("proxies", name)
    except registry.PluginSettingsError:
        return False
    except ImportError:
        return True  # reported when the study is checked
    return True
