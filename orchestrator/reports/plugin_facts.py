"""What a plug-in says about itself, as plain data."""

from typing import Any

from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from plugins import registry


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
        "settings": {
            key: getattr(hint, "__name__", str(hint)) for key, hint in registry.setting_types(kind, name).items()
        },
    }


def settings_schema(kind: str, name: str) -> dict[str, Any] | None:
    """The JSON schema of a plug-in's settings; `None` if it has settings without one, or is a function."""
    plugin = registry.load(kind, name)
    if not isinstance(plugin, type):
        return None
    try:
        return TypeAdapter(plugin).json_schema()
    except (PydanticUserError, PydanticSchemaGenerationError):
        return None
