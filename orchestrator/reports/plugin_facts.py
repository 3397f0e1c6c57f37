"""What a plug-in says about itself, as plain data."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from plugins import registry

EFFECTS = Path(__file__).with_name("measured_effects.json")
"""What methods of ours gave in the benchmarks, by kind and name; a test of the docs keeps it up to date."""


def plugin_lines(kinds: tuple[str, ...] = registry.KINDS) -> list[dict[str, str]]:
    """The installed plug-ins of some kinds, one dict each."""
    return [
        {"kind": kind, "name": point.name, "package": registry.provider(kind, point.name), "target": point.value}
        for kind in kinds
        for point in registry.available(kind).values()
    ]


def plugin_facts(kind: str, name: str) -> dict[str, Any]:
    """The card of a plug-in and the types of its settings.

    Raises:
        plugins.registry.UnknownPluginError: No plug-in has this name.
    """
    plugin = registry.load(kind, name)
    card = getattr(plugin, "card", None)
    return {
        "kind": kind,
        "name": name,
        "package": registry.provider(kind, name),
        "about": (plugin.__doc__ or "").strip().partition("\n")[0],
        "source": card.source if card else None,
        "cost": card.cost if card else None,
        "needs": list(card.needs) if card else [],
        "measured": measured_effect(kind, name),
        "settings": {
            key: getattr(hint, "__name__", str(hint)) for key, hint in registry.setting_types(kind, name).items()
        },
    }


def measured_effect(kind: str, name: str) -> str | None:
    """What a method gave in our benchmarks; `None` if it is another package's, or was not measured."""
    is_ours = registry.provider(kind, name).startswith("vitsearch ")
    return _effects().get(kind, {}).get(name) if is_ours else None


@cache
def _effects() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(EFFECTS.read_text(encoding="utf-8"))
    return found


def settings_schema(kind: str, name: str) -> dict[str, Any] | None:
    """The JSON schema of a plug-in's settings; `None` if it has settings without one, or is a function."""
    plugin = registry.load(kind, name)
    if not isinstance(plugin, type):
        return None
    try:
        return TypeAdapter(plugin).json_schema()
    except (PydanticUserError, PydanticSchemaGenerationError):
        return None
