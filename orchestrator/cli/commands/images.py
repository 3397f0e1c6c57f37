"""Commands about a user's own images."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.commands.options import Format, FormatOption, ServerOption, SkipBrokenOption, VerifyOption

commands = typer.Typer()


@commands.command("data")
def _data(
    source: Annotated[str, typer.Argument(metavar="PATH|STUDY.yaml", help="Images, or a study file that names them.")],
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="PIXELS", help="Height and width for the model (32)."),
    ] = None,
    resize: Annotated[
        str | None, typer.Option("--resize", metavar="HOW", help="`stretch`, `crop` or `same`; `stretch` for a PATH.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option("--background", metavar="COLOUR", help="Behind transparent pixels (`white`)."),
    ] = None,
    skip_broken: SkipBrokenOption = False,
    duplicates: Annotated[
        str | None, typer.Option("--duplicates", metavar="HOW", help="`drop` leaves copies out of the training part.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE", help="Draw training images into this picture file.")
    ] = None,
    verify: VerifyOption = False,
    output: FormatOption = Format.text,
) -> None:
    """Show what is understood of a data set, before any training."""
    from orchestrator.cli.describing import data_command

    given = {
        "image_size": image_size,
        "resize": resize,
        "background": background,
        "skip_broken": skip_broken or None,
        "duplicates": duplicates,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    data_command(source, settings=settings, sheet=sheet, verify=verify, as_json=output is Format.json)


@commands.command("recommend")
def _recommend(
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="Images that a model is wanted for.")],
    max_params: Annotated[
        str | None, typer.Option("--max-params", metavar="N", help="Most parameters of the model, such as 500k or 2M.")
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="SPACE", help="Search space of the model, such as as-vit.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="Longest time of the earlier study, such as 2h.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PIXELS", help="Height and width for the model (32).")
    ] = None,
    skip_broken: SkipBrokenOption = False,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Number of studies to show.")] = 3,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the nearest configuration for `vitsearch train`."),
    ] = None,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Find finished studies of data like yours.

    Each is shown with the configuration that it found and what that gave.
    """
    from orchestrator.cli.recommending import recommend_command

    given = {"image_size": image_size, "skip_broken": skip_broken or None}
    recommend_command(
        data,
        settings={name: value for name, value in given.items() if value is not None},
        max_params=max_params,
        space=space,
        budget=budget,
        top=top,
        file=file,
        server=server,
        as_json=output is Format.json,
    )
