"""How `--help` names the values of options, in words for people instead of Python's types."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from orchestrator.cli.console import fail
from orchestrator.cli.exit_status import INTERRUPTED
from orchestrator.cli.usage_errors import UsageError, usage_message


class Commands(TyperGroup):
    """The commands of vitsearch."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command that the arguments name; a usage error is one line, as any other mistake."""
        try:
            status = super().main(*args, **{**extra, "prog_name": "vitsearch", "standalone_mode": False})
        except UsageError as error:
            if not (message := usage_message(error)):
                sys.exit(error.exit_code)
            fail(message, status=error.exit_code)
        except typer.Abort:  # Ctrl-C or Ctrl-D at a question
            fail("nothing was done", status=1)
        if status == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt, in silence
            fail("interrupted", status=INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _name_values(parameter)
        return parameters

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            for parameter in (*command.params, command.get_help_option(ctx)):
                _name_values(parameter)
        return command


def _name_values(parameter: Any) -> None:
    """Name the values of an option: nothing for a flag, `N` for a number. The name of an argument says enough."""
    if parameter.param_type_name == "argument":
        if parameter.metavar is not None:
            parameter.metavar = parameter.metavar.strip("[].")  # Typer adds brackets and dots
        parameter.display_type_rich = _no_type
    elif parameter.metavar is None:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        elif getattr(getattr(parameter, "type_descriptor", None), "annotation", None) in (int, list[int]):
            parameter.metavar = "N"


def _no_type(ctx: Any) -> None:
    """In place of a type such as `<list[Path]>`."""
