"""Commands that start and manage a service."""

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.commands.options import Format, FormatOption, ServerOption, StudyArgument
from orchestrator.cli.help_text import Commands

commands = typer.Typer()
tokens = typer.Typer(cls=Commands, help="Manage the access tokens of the service.", no_args_is_help=True)
commands.add_typer(tokens, name="token")
owners = typer.Typer(cls=Commands, help="Show and set the shares of the owners of studies.", no_args_is_help=True)
commands.add_typer(owners, name="owner")


class RoleName(StrEnum):
    """Roles of an access token."""

    viewer = "viewer"
    submitter = "submitter"
    admin = "admin"


@commands.command("serve")
def _serve(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Interface to listen on; by default this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    mlflow_url: Annotated[
        str | None,
        typer.Option("--mlflow", metavar="URL", help="Address of MLflow for links; by default MLFLOW_TRACKING_URI."),
    ] = None,
    runs_studies: Annotated[
        bool, typer.Option("--run/--no-run", help="Whether this process starts the drivers of submitted studies.")
    ] = True,
) -> None:
    """Serve the studies to browsers, and run submitted ones.

    Programs and the commands on other machines use it, too.
    """
    from orchestrator.cli.hosting import serve_command

    serve_command(host, port, mlflow_url, runs_studies=runs_studies)


@commands.command("share")
def _share(
    study: StudyArgument,
    stop: Annotated[bool, typer.Option("--stop", help="Share it no longer.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Let others see a study of a service.

    They see its results, report, configuration and champion.
    """
    from orchestrator.cli.sharing import share_command

    share_command(study, server, shared=not stop, as_json=output is Format.json)


@tokens.command("create")
def _create_token(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="Name of the person or program.")],
    role: Annotated[
        RoleName, typer.Option("--role", help="`viewer` reads, `submitter` also submits, `admin` may do everything.")
    ] = RoleName.submitter,
    days: Annotated[float, typer.Option("--days", metavar="DAYS", help="Days until it expires.")] = 90,
    label: Annotated[str, typer.Option("--label", metavar="TEXT", help="What it is for.")] = "",
    output: FormatOption = Format.text,
) -> None:
    """Create a token and print it, once."""
    from orchestrator.cli.tokens import create_token_command

    create_token_command(owner, role.value, days=days, label=label, as_json=output is Format.json)


@tokens.command("list")
def _list_tokens(output: FormatOption = Format.text) -> None:
    """List all tokens, without their secrets."""
    from orchestrator.cli.tokens import list_tokens_command

    list_tokens_command(as_json=output is Format.json)


@tokens.command("revoke")
def _revoke_token(
    uid: Annotated[str, typer.Argument(metavar="ID", help="Identifier of the token, as in `vitsearch token list`.")],
) -> None:
    """Revoke a token at once."""
    from orchestrator.cli.tokens import revoke_token_command

    revoke_token_command(uid)


@owners.command("list")
def _list_owners(output: FormatOption = Format.text) -> None:
    """List owners with their weights and the device time that they have used."""
    from orchestrator.cli.owners import list_owners_command

    list_owners_command(as_json=output is Format.json)


@owners.command("weight")
def _weigh_owner(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="Name of the person or program.")],
    weight: Annotated[float, typer.Argument(metavar="WEIGHT", help="1 by default; 2 gets twice the device time.")],
) -> None:
    """Set an owner's share of the devices."""
    from orchestrator.cli.owners import set_weight_command

    set_weight_command(owner, weight)
