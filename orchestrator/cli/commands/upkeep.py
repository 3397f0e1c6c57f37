"""Commands that keep the home and MLflow in order."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.commands.options import Format, FormatOption, ServerOption, StudyArgument

commands = typer.Typer()


@commands.command("sync")
def _sync(study: StudyArgument) -> None:
    """Send a study to MLflow again, if its runs were deleted there."""
    from orchestrator.cli.serving import sync_command

    sync_command(study)


@commands.command("prune")
def _prune(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY...]", help="Names or quoted patterns; by default all studies.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show how much would be freed.")] = False,
    output: FormatOption = Format.text,
) -> None:
    """Drop checkpoints that no champion needs.

    Those of complete studies only.
    """
    from orchestrator.cli.cleaning import prune_command

    prune_command(studies or [], dry_run=dry_run, as_json=output is Format.json)


@commands.command("backup")
def _backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the backup.")],
    no_objects: Annotated[
        bool,
        typer.Option("--no-objects", help="Leave out what an object store holds, if it keeps copies by other means."),
    ] = False,
) -> None:
    """Copy all studies, models and databases into a new folder.

    Studies may run meanwhile.
    """
    from orchestrator.cli.safekeeping import backup_command

    backup_command(folder, with_objects=not no_objects)


@commands.command("restore")
def _restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `vitsearch backup` made.")],
) -> None:
    """Fill a new, empty home from a backup."""
    from orchestrator.cli.safekeeping import restore_command

    restore_command(folder)


@commands.command("delete")
def _delete(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Names of studies, or quoted patterns such as 'test-*'.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    server: ServerOption = None,
) -> None:
    """Delete studies with all their files.

    Their MLflow experiments go to MLflow's trash.
    """
    from orchestrator.cli.cleaning import delete_command

    delete_command(studies, server, yes=yes)
