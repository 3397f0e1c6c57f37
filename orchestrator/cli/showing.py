"""Commands that show existing studies and plug-ins: list, status, best, plugins."""

from datetime import UTC, datetime

from orchestrator.cli import tables
from orchestrator.cli.console import fail, note, out, print_json, print_text
from orchestrator.cli.remote import client_of, summary_there
from orchestrator.reports.plugin_facts import plugin_facts, plugin_lines
from orchestrator.settings import load_settings
from plugins import registry


def list_command(server: str | None, *, as_json: bool) -> None:
    """Print all studies."""
    from orchestrator.study.access import list_studies

    client = client_of(server)
    if client is None:
        _tell_of_lost_rows()
    rows = list(client.studies()) if client else list_studies(load_settings())
    if as_json:
        print_json(rows)
        return
    if client and not rows:
        out("No studies yet that you may see. Submit one with: vitsearch submit FILE")
        return
    for row in rows:
        row["updated"] = datetime.fromtimestamp(row["updated_at"], UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    out(tables.study_table(rows))


def _tell_of_lost_rows() -> None:
    from orchestrator.study.access import num_folders_without_rows

    settings = load_settings()
    count = num_folders_without_rows(settings)
    if count:
        note(
            f"warning: {count} folders in {settings.artifact_root / 'studies'} belong to studies that the database "
            "does not know. If it was emptied or replaced, restore it from a backup (docs/backup.md)."
        )


def status_command(name: str, server: str | None, *, as_json: bool) -> None:
    """Print one study."""
    from orchestrator.study.access import find_summary

    client = client_of(server)
    summary = summary_there(client, name) if client else find_summary(name, load_settings())
    if as_json:
        print_json(summary)
    else:
        out(tables.status_report(summary))


def best_command(name: str, server: str | None) -> None:
    """Print the champion's configuration."""
    client = client_of(server)
    if client:
        print_text(client.best(name))
        return
    from orchestrator.reports.summary import configuration_yaml
    from orchestrator.study.access import find_champion
    from trainers.config import Configuration

    champion = find_champion(name, load_settings())
    configuration = Configuration.model_validate(champion["configuration"])
    print_text(configuration_yaml(configuration, champion["recommended_stopping"]))


def plugins_command(kind: str | None, name: str | None, *, as_json: bool) -> None:
    """Print all plug-ins, the plug-ins of one kind, or the card of one plug-in."""
    if kind is not None and kind not in registry.KINDS:
        nearest = registry.nearest_name(kind, registry.KINDS)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        fail(f"the kind of plug-in must be one of {', '.join(registry.KINDS)}, but got {kind!r}.{hint}", status=2)
    if kind is not None and name is not None:
        _show_card(kind, name, as_json=as_json)
        return
    rows = plugin_lines((kind,) if kind else registry.KINDS)
    if as_json:
        print_json(rows)
    else:
        out(tables.plugin_table(rows))


def _show_card(kind: str, name: str, *, as_json: bool) -> None:
    facts = plugin_facts(kind, name)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        shown = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        out(f"{key:<9} {', '.join(shown) if isinstance(shown, list) else shown or '-'}")
