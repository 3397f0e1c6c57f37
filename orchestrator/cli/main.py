"""`vitsearch`: the commands, and how their errors are shown."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.console import fail, out

app = typer.Typer(
    name="vitsearch",
    help="Finds a vision transformer, and the way to train it, for your own images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """How results are printed."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="`text` for people, `json` for programs.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Images to use instead of the file's `data.source`."),
]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study.")]


def main() -> None:
    """Entry point of the console script: runs a command and turns our errors into one message and an exit status.

    Exit status: 0 done, 1 the study or command could not reach its goal, 2 wrong input, 130 interrupted.
    """
    _quiet_libraries()
    from orchestrator.settings import SettingsError
    from orchestrator.yaml_source import SpecError
    from plugins.registry import DuplicatePluginError

    try:
        app()
    except (SpecError, SettingsError, DuplicatePluginError, InputError) as error:
        fail(str(error), status=2)
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except BrokenPipeError:  # `vitsearch list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class InputError(ValueError):
    """What the user gave cannot be used; the message says why and what to do."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file, such as studies/quickstart.yaml.")],
    data: DataOption = None,
    quiet: QuietOption = False,
    output: FormatOption = Format.text,
) -> None:
    """Run a study to its end, or go on with it where it stopped."""
    from orchestrator.cli.running import run_command

    run_command(file, overrides={"data.source": data} if data else {}, quiet=quiet, as_json=output is Format.json)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file.")], data: DataOption = None
) -> None:
    """Check a study file without running anything."""
    from orchestrator.spec import load_spec

    spec = load_spec(file, overrides={"data.source": data} if data else {})
    out(f"{file}: study {spec.study!r} is valid: {' -> '.join(stage.name for stage in spec.stages)}")


@app.command("list")
def list_studies(output: FormatOption = Format.text) -> None:
    """All studies, newest first."""
    from orchestrator.cli.showing import list_command

    list_command(as_json=output is Format.json)


@app.command()
def status(study: StudyArgument, output: FormatOption = Format.text) -> None:
    """State and figures of a study's stages, and its champion."""
    from orchestrator.cli.showing import status_command

    status_command(study, as_json=output is Format.json)


@app.command()
def best(study: StudyArgument) -> None:
    """Print the champion's complete configuration file, for `vitsearch train`."""
    from orchestrator.cli.showing import best_command

    best_command(study)


@app.command()
def train(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A configuration, as `vitsearch best` prints it.")],
    data: DataOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where the model goes; by default beside FILE.")
    ] = None,
    quiet: QuietOption = False,
    output: FormatOption = Format.text,
) -> None:
    """Train one configuration again, on the same data or on other data."""
    from orchestrator.cli.modelling import train_command

    overrides = {"data.source": data} if data else {}
    train_command(file, overrides=overrides, folder=folder, quiet=quiet, as_json=output is Format.json)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A study's name (its champion) or a model folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    output: FormatOption = Format.text,
) -> None:
    """Classify images with a study's champion or a trained model."""
    from orchestrator.cli.modelling import predict_command

    predict_command(model, images, as_json=output is Format.json)


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Such as proxies or stopping.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one's card.")] = None,
    output: FormatOption = Format.text,
) -> None:
    """The installed plug-ins, or the card of one."""
    from orchestrator.cli.showing import plugins_command

    plugins_command(kind, name, as_json=output is Format.json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Serve MLflow's pages on the store of the studies."""
    from orchestrator.cli.showing import ui_command

    ui_command(port)


@app.command()
def delete(
    study: StudyArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a study: its trials, checkpoints and plots. Its MLflow experiment goes to MLflow's trash."""
    from orchestrator.cli.showing import delete_command

    delete_command(study, yes=yes)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed_version

        out(f"vitsearch {installed_version('vitsearch')}")
        raise typer.Exit


def _quiet_libraries() -> None:
    """Libraries must not phone home, download, or chat on the terminal; must be set before they are imported."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
