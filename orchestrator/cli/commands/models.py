"""Commands that train, judge, use and export a model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.commands.options import (
    DataOption,
    Format,
    FormatOption,
    ModelArgument,
    QuietOption,
    ServerOption,
    SkipBrokenOption,
    StudyArgument,
)
from trainers.export_formats import ExportFormat

commands = typer.Typer()


class PartName(StrEnum):
    """Parts of a data set that a model can be evaluated on."""

    test = "test"
    validation = "validation"
    train = "train"
    all = "all"


@commands.command("best")
def _best(study: StudyArgument, server: ServerOption = None) -> None:
    """Print the champion's configuration, for `vitsearch train`."""
    from orchestrator.cli.showing import best_command

    best_command(study, server)


@commands.command("download")
def _download(
    study: StudyArgument,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="New folder; by default the name of the study.")
    ] = None,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Copy the champion of a study from a service.

    Then use it on this machine with `predict`, `evaluate` and `export`.
    """
    from orchestrator.cli.sharing import download_command

    download_command(study, server, folder=folder, as_json=output is Format.json)


@commands.command("train")
def _train(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A configuration, as printed by `vitsearch best`.")],
    data: DataOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for the model; by default next to FILE.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="WEIGHTS",
            help="Start from these weights: STUDY@champion, a model folder, a .safetensors or a .pth file.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in an existing folder.")] = False,
    quiet: QuietOption = False,
    output: FormatOption = Format.text,
) -> None:
    """Train one configuration again, on the same or other data."""
    from orchestrator.cli.modelling import train_command

    overrides: dict[str, Any] = {"data.source": data} if data else {}
    overrides |= {"weights": weights} if weights else {}
    as_json = output is Format.json
    train_command(file, overrides=overrides, folder=folder, overwrite=overwrite, quiet=quiet, as_json=as_json)


@commands.command("evaluate")
def _evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A study's name (its champion), NAME@champion, or a model folder.")
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="Labelled images, as `vitsearch data` reads them; by default the model's."
        ),
    ] = None,
    part: Annotated[
        PartName | None,
        typer.Option("--part", help="By default the test part, if DATA has one or is the model's own; otherwise all."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write plots, tables and report.json into this new folder."),
    ] = None,
    skip_broken: SkipBrokenOption = False,
    output: FormatOption = Format.text,
) -> None:
    """Judge a model on labelled images.

    The result has metrics with intervals, classes, calibration and mistakes.
    """
    from orchestrator.cli.evaluating import evaluate_command

    evaluate_command(
        model,
        data,
        part=part.value if part else None,
        folder=folder,
        skip_broken=skip_broken,
        as_json=output is Format.json,
    )


@commands.command("predict")
def _predict(
    model: ModelArgument,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns such as '*.jpg'.")
    ],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Number of classes to print per image.")] = 3,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line of comma-separated values per image.")] = False,
    output: FormatOption = Format.text,
) -> None:
    """Classify images with a study's champion or a trained model."""
    from orchestrator.cli.predicting import predict_command

    predict_command(model, images, top=top, as_csv=as_csv, as_json=output is Format.json)


@commands.command("export")
def _export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A study's name (its champion) or a model folder; a study for --optuna."),
    ],
    export_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Format of the model's file.", show_default=False)
    ] = None,
    optuna: Annotated[
        str | None,
        typer.Option(
            "--optuna",
            metavar="URL",
            help="Instead of a model, write the study's searches into this Optuna database: sqlite:///file.db",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; by default MODEL with a suffix.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a model for other programs, or searches for Optuna.

    A model comes with its preprocessing and class names.
    """
    from orchestrator.cli.exporting import export_command, export_optuna_command

    if (export_format is None) == (optuna is None) or (optuna is not None and file is not None):
        raise typer.BadParameter(
            f"name either --format ({', '.join(list(ExportFormat)[:-1])} or {list(ExportFormat)[-1]}) or --optuna URL"
        )
    if optuna is not None:
        export_optuna_command(model, optuna, overwrite=overwrite, as_json=as_json)
    elif export_format is not None:
        export_command(model, export_format, file=file, overwrite=overwrite, as_json=as_json)
