"""Commands that show existing studies and plug-ins: list, status, best, plugins."""

from datetime import UTC, datetime
from typing import Any

from orchestrator.cli.console import fail, note, out, print_json, print_text
from orchestrator.cli.remote import client_of, summary_there
from orchestrator.settings import load_settings


def list_command(server: str | None, *, as_json: bool) -> None:
    """Print all studies."""
    from orchestrator.cli.list_tables import study_table

    client = client_of(server)
    rows = list(client.studies()) if client else _studies_here()
    if as_json:
        print_json(rows)
        return
    if client and not rows:
        out("No studies yet that you may see. Submit one with: vitsearch submit FILE")
        return
    for row in rows:
        row["updated"] = datetime.fromtimestamp(row["updated_at"], UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    out(study_table(rows))


def _studies_here() -> list[dict[str, Any]]:
    """The studies of the home folder. A warning tells of those whose rows were lost."""
    from orchestrator.study.access import list_studies, num_folders_without_rows

    settings = load_settings()
    count = num_folders_without_rows(settings)
    if count:
        note(
            f"warning: {count} folders in {settings.artifact_root / 'studies'} belong to studies that the database "
            "does not know. If it was emptied or replaced, restore it from a backup (docs/backup.md)."
        )
    return list_studies(settings)


def status_command(name: str, server: str | None, *, as_json: bool) -> None:
    """Print one study."""
    client = client_of(server)
    summary = summary_there(client, name) if client else _summary_here(name)
    if as_json:
        print_json(summary)
    else:
        from orchestrator.cli.tables import status_report

        out(status_report(summary))


def _summary_here(name: str) -> dict[str, Any]:
    """The summary of a study of this home, also of one that was submitted and has not begun."""
    from orchestrator.study.access import StudyNotBegunError, find_summary

    settings = load_settings()
    try:
        return find_summary(name, settings)
    except StudyNotBegunError as error:
        from orchestrator.cli.submitting import opened_store
        from orchestrator.reports.summary import summary_before_begin
        from orchestrator.study.states import state_before_begin

        submission = error.submission
        with opened_store(settings) as store:
            state, reason = state_before_begin(store, submission)
            spec, _ = store.queue().spec_of(submission.uid)
        return summary_before_begin(submission, spec, state, reason)


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
    from orchestrator.cli.list_tables import plugin_table
    from orchestrator.reports.plugin_facts import plugin_lines
    from plugins import registry

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
        out(plugin_table(rows))


def _show_card(kind: str, name: str, *, as_json: bool) -> None:
    from orchestrator.reports.plugin_facts import plugin_facts

    facts = plugin_facts(kind, name)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        shown = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        out(f"{key:<9} {', '.join(shown) if isinstance(shown, list) else shown or '-'}")
