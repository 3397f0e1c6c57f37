"""Commands that show existing studies and plug-ins: list, status, best, plugins, ui."""

import os
from datetime import UTC, datetime
from typing import Any

from orchestrator.cli import tables
from orchestrator.cli.console import fail, note, out, print_json
from orchestrator.settings import Settings, load_settings
from plugins import registry


def list_command(*, as_json: bool) -> None:
    """Print all studies."""
    from orchestrator.study.access import list_studies

    rows = list_studies(load_settings())
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["updated"] = datetime.fromtimestamp(row["updated_at"], UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    out(tables.study_table(rows))


def status_command(name: str, *, as_json: bool) -> None:
    """Print one study."""
    from orchestrator.study.access import find_summary

    summary = find_summary(name, load_settings())
    if as_json:
        print_json(summary)
    else:
        out(tables.status_report(summary))


def best_command(name: str) -> None:
    """Print the champion's configuration."""
    from orchestrator.reports.summary import configuration_yaml
    from orchestrator.study.access import find_champion
    from trainers.config import Configuration

    champion = find_champion(name, load_settings())
    configuration = Configuration.model_validate(champion["configuration"])
    print(configuration_yaml(configuration, champion["recommended_stopping"]), end="")  # noqa: T201 - a file's text


def plugins_command(kind: str | None, name: str | None, *, as_json: bool) -> None:
    """Print all plug-ins, the plug-ins of one kind, or the card of one plug-in."""
    if kind is not None and kind not in registry.KINDS:
        nearest = registry.nearest_name(kind, registry.KINDS)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        fail(f"the kind of plug-in must be one of {', '.join(registry.KINDS)}, but got {kind!r}.{hint}", status=2)
    if kind is not None and name is not None:
        _show_card(kind, name, as_json=as_json)
        return
    rows = [
        {"kind": one, "name": point.name, "package": registry.provider(one, point.name), "target": point.value}
        for one in ([kind] if kind else registry.KINDS)
        for point in registry.available(one).values()
    ]
    if as_json:
        print_json(rows)
    else:
        out(tables.plugin_table(rows))


def ui_command(port: int) -> None:
    """Replace this process with an MLflow server for the studies."""
    import socket

    from orchestrator.tracking.mlflow_client import server_command

    settings = load_settings()
    if settings.tracking_uri.startswith(("http://", "https://")):
        out(f"MLflow is running at {settings.tracking_uri}")
        return
    if not settings.home.exists():
        fail(f"{settings.home} must contain a study, but does not exist yet. Run a study first.", status=1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            fail(
                f"port {port} must be free, but it is in use. Use another port: vitsearch ui --port {port + 1}",
                status=1,
            )
    command = server_command(settings.tracking_uri, settings.artifact_root / "mlflow", port=port)
    note(f"MLflow is running at {command.url} (press Ctrl-C to stop it). Pages of trained trials and of all runs:")
    for name, pages in _pages(settings, command.url):
        note(f"  {name}:")
        for page in pages:
            note(f"    {page}")
    os.execvpe(command.argv[0], command.argv, {**os.environ, **command.env})  # noqa: S606


def _pages(settings: Settings, server_url: str) -> list[tuple[str, list[str]]]:
    """The newest studies, each with its MLflow pages of trained trials and of all runs."""
    from orchestrator.study.access import open_existing
    from orchestrator.tracking.mlflow_client import Tracker
    from orchestrator.tracking.run_tree import ALL_VIEW, TRIALS_VIEW

    tracker = Tracker(settings.tracking_uri, settings.artifact_root / "mlflow")
    with open_existing(settings) as store:
        names = [study.name for study in store.list_studies()[:5]] if store else []
    found = [
        (name, [tracker.experiment_url(name, server_url=server_url, view=view) for view in (TRIALS_VIEW, ALL_VIEW)])
        for name in names
    ]
    return [(name, [page for page in pages if page is not None]) for name, pages in found if any(pages)]


def _show_card(kind: str, name: str, *, as_json: bool) -> None:
    plugin = registry.load(kind, name)
    card = getattr(plugin, "card", None)
    facts: dict[str, Any] = {
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
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        shown = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        out(f"{key:<9} {', '.join(shown) if isinstance(shown, list) else shown or '-'}")
