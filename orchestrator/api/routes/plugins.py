"""The installed plug-ins."""

from fastapi import APIRouter, Depends

from orchestrator.api.auth import caller_of
from orchestrator.api.errors import RequestError
from orchestrator.api.schemas import PluginLine, PluginView
from orchestrator.reports.plugin_facts import plugin_facts, plugin_lines, settings_schema
from plugins import registry

router = APIRouter(prefix="/v1/plugins", tags=["plug-ins"], dependencies=[Depends(caller_of)])


@router.get("", summary="List plug-ins")
def list_plugins() -> list[PluginLine]:
    """All installed plug-ins."""
    return [PluginLine.model_validate(row) for row in plugin_lines()]


@router.get("/{kind}", summary="List plug-ins of a kind")
def list_plugins_of_kind(kind: str) -> list[PluginLine]:
    """The installed plug-ins of one kind."""
    return [PluginLine.model_validate(row) for row in plugin_lines((_known(kind),))]


@router.get("/{kind}/{name}", summary="Show a plug-in")
def show_plugin(kind: str, name: str) -> PluginView:
    """The card of a plug-in, with the JSON schema of its settings."""
    facts = plugin_facts(_known(kind), name)
    return PluginView(**facts, settings_schema=settings_schema(kind, name))


def _known(kind: str) -> str:
    if kind not in registry.KINDS:
        nearest = registry.nearest_name(kind, registry.KINDS)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise RequestError(
            404,
            "unknown-kind",
            f"the kind of plug-in must be one of {', '.join(registry.KINDS)}, but got {kind!r}.{hint}",
        )
    return kind
