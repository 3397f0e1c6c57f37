"""`vitsearch`: puts the commands together and shows their errors."""

import atexit
import gc
import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from orchestrator.cli.commands import images, models, results, scores, service, studies, upkeep
from orchestrator.cli.console import fail, note, out
from orchestrator.cli.exit_status import INTERRUPTED, exit_on_error, exit_without_resources
from orchestrator.cli.help_text import Commands
from orchestrator.cli.quiet import quiet_libraries
from orchestrator.safe_text import SafeFormatter

GROUPS = {
    "Your images": images.commands,
    "Studies": studies.commands,
    "Results": results.commands,
    "Models": models.commands,
    "Scores": scores.commands,
    "Service": service.commands,
    "Upkeep": upkeep.commands,
}
"""The commands by their headings in `vitsearch --help`, in the order in which a study needs them."""

app = typer.Typer(
    name="vitsearch",
    cls=Commands,
    help="Find a vision transformer, and a way to train it, for your own images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for heading, group in GROUPS.items():
    for command in group.registered_commands:
        command.rich_help_panel = heading
    for subgroup in group.registered_groups:
        subgroup.rich_help_panel = heading
    app.add_typer(group)


def main() -> None:
    """Entry point of the console script: runs a command and turns our errors into one message and an exit status.

    Exit status: 0 success, 1 the study or command could not reach its goal, 2 invalid input, 130 interrupted.
    """
    atexit.register(gc.freeze)  # otherwise, Python searches all objects of torch and MLflow for garbage before it ends
    quiet_libraries()
    _keep_output_safe()
    try:
        with exit_on_error(), exit_without_resources():
            app()
    except KeyboardInterrupt:
        fail("interrupted", status=INTERRUPTED)
    except BrokenPipeError:  # `vitsearch list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep_output_safe() -> None:
    """Log messages and tracebacks show no secrets and contain no control characters."""
    formatter = SafeFormatter()
    if logging.lastResort is not None:  # what prints warnings, since we configure no logging
        logging.lastResort.setFormatter(formatter)
    sys.excepthook = lambda kind, error, trace: note(
        "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    )


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed_version

        out(f"vitsearch {installed_version('vitsearch')}")
        raise typer.Exit
    from orchestrator.settings import load_settings
    from orchestrator.tracking.relocation import relocate_home

    settings = load_settings()
    settings.apply()
    problem = relocate_home(settings.tracking_uri, settings.mlflow_root) if settings.tracking else None
    if problem is not None:
        note(problem)


if __name__ == "__main__":
    main()
