"""Commands that show what studies found."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.commands.options import Format, FormatOption, PortOption, ServerOption, StudyArgument

commands = typer.Typer()


@commands.command("list")
def _list(server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """List all studies, newest first."""
    from orchestrator.cli.showing import list_command

    list_command(server, as_json=output is Format.json)


@commands.command("status")
def _status(study: StudyArgument, server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """Show the stages, the best trials and the champion of a study."""
    from orchestrator.cli.showing import status_command

    status_command(study, server, as_json=output is Format.json)


@commands.command("trials")
def _trials(
    study: StudyArgument,
    stage: Annotated[str | None, typer.Option("--stage", metavar="NAME", help="Only the trials of this stage.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line of comma-separated values per trial.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """List a study's trials, with what was searched and measured."""
    from orchestrator.cli.trials import trials_command

    trials_command(study, server, stage=stage, as_csv=as_csv, as_json=output is Format.json)


@commands.command("compare")
def _compare(
    study: StudyArgument,
    trials: Annotated[
        list[int] | None, typer.Argument(metavar="[TRIAL]...", help="Numbers of trials; by default the best four.")
    ] = None,
    port: PortOption = 5000,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Whether to open the page in MLflow; by default only in a terminal."),
    ] = None,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Compare trained trials, in a table and on a page of MLflow.

    Both show what differs between them.
    """
    from orchestrator.cli.comparing import compare_command

    compare_command(study, trials or (), server, port=port, as_json=output is Format.json, open_page=open_page)


@commands.command("diff")
def _diff(
    first: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study.")],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="Name of another study.")],
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Show what differs between two studies.

    It compares files, images, champions and results.
    """
    from orchestrator.cli.differing import diff_command

    diff_command(first, second, server, as_json=output is Format.json)


@commands.command("report")
def _report(
    study: StudyArgument,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; by default STUDY-report.html.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write a report on a study, as one web page.

    It has the data, the search, the results, the mistakes, and how to use the champion.
    """
    from orchestrator.cli.reporting import report_command

    report_command(study, server, file=file, overwrite=overwrite, as_json=output is Format.json)


@commands.command("ui")
def _ui(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Open the page of this study.")] = None,
    port: PortOption = 5000,
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask for user names and passwords; also for MLflow's clients.")
    ] = False,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Interface to listen on; with --auth only.")
    ] = "127.0.0.1",
) -> None:
    """Start MLflow on the studies, and open the page of a study."""
    from orchestrator.cli.serving import ui_command

    ui_command(port, study, host=host, asks_login=auth)
