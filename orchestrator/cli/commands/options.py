"""Arguments and options that several commands have."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """Output format of results."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="`text` for people, `json` for programs.")]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify", help="Decode all images again, also those whose files have the same size and time as before."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Images to use instead of the file's `data.source`."),
]
EngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME", help="`optuna`, `ray` or `auto`, instead of the file's `engine`."),
]
SkipBrokenOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A study's name (its champion) or a model folder.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of MLflow on this machine.")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Address of a service, instead of VITSEARCH_SERVER or the home folder."
    ),
]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study.")]
RecipesOption = Annotated[
    list[str] | None,
    typer.Option("--recipe", metavar="NAME", help="Recipe in each table of trainings, if it has several."),
]
EpochsOption = Annotated[
    list[int] | None,
    typer.Option("--epoch", min=1, help="Epoch in each table of trainings; by default the last."),
]
NumTestImagesOption = Annotated[
    list[int] | None,
    typer.Option(
        "--test-images",
        min=1,
        help="Number of images that measured the accuracies of each table, to estimate the tau of a perfect score; "
        "known for a table of trainings.",
    ),
]
