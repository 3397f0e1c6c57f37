"""Commands about training-free scores and other plug-ins."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.commands.options import (
    EpochsOption,
    Format,
    FormatOption,
    NumTestImagesOption,
    QuietOption,
    RecipesOption,
)

commands = typer.Typer()


@commands.command("correlate")
def _correlate(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study whose trained topologies are compared.")
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Instead of a study, a JSON table of `arch` and targets, or a table of trainings (.parquet); may be "
            "repeated for a joint verdict.",
        ),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", metavar="SPACE", help="Search space of each table, such as pit; one for all, or each."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="TARGET", help="Name of the target in each table; one for all, or each."),
    ] = None,
    recipe: RecipesOption = None,
    epoch: EpochsOption = None,
    test_images: NumTestImagesOption = None,
    proxies: Annotated[
        list[str] | None,
        typer.Option(
            "--proxies",
            metavar="NAMES",
            help="Comma-separated names, or `all`. The default is the study's screened proxies, or all for a table.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Number of seeds for scores that depend on random numbers.")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="Fresh initialisations per score; by default each proxy's setting."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Number of images per proxy; by default 16.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Images to score on; by default noise.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", help="Image size in pixels, for a table; by default 224, or that of its trainings."
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes",
            help="Number of classes of the table's networks; by default 100, or those of its trainings.",
        ),
    ] = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(
            "--transfer",
            metavar="FILE:SPACE:TARGET",
            help="An additional table on which to test the learned combination; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of all random numbers.")] = None,
    quiet: QuietOption = False,
    output: FormatOption = Format.text,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Measure how well training-free scores predict accuracy.

    The verdict tells whether any of them beats counting parameters.
    """
    from orchestrator.cli.correlating import CorrelateOptions, correlate_command

    options = CorrelateOptions(
        study=study,
        tables=table or (),
        spaces=space or (),
        targets=target or (),
        test_images=test_images or (),
        recipes=recipe or (),
        epochs=epoch or (),
        num_classes=num_classes,
        proxies=proxies or (),
        seeds=seeds,
        repeats=repeats,
        batch_size=batch_size,
        data=data,
        image_size=image_size,
        transfers=transfer or (),
        seed=seed,
    )
    correlate_command(options, quiet=quiet, as_json=as_json or output is Format.json)


@commands.command("discover")
def _discover(
    table: Annotated[
        list[Path],
        typer.Option(
            "--table",
            metavar="FILE",
            help="A JSON table of `arch` and targets, or a table of trainings (.parquet); may be repeated.",
        ),
    ],
    space: Annotated[
        list[str], typer.Option("--space", metavar="SPACE", help="Search space of all tables, or one per table.")
    ],
    target: Annotated[
        list[str], typer.Option("--target", metavar="TARGET", help="Target in all tables, or one per table.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name for the discovered proxy.")],
    recipe: RecipesOption = None,
    epoch: EpochsOption = None,
    test_images: NumTestImagesOption = None,
    iterations: Annotated[int, typer.Option(min=1, help="Number of formulas to try.")] = 20_000,
    max_size: Annotated[int, typer.Option(help="Maximum number of inputs and operations in a formula.")] = 15,
    num_networks: Annotated[int, typer.Option(min=1, help="Fresh networks per topology.")] = 1,
    batch_size: Annotated[int, typer.Option(min=2, help="Number of images per network.")] = 16,
    data: Annotated[str, typer.Option(metavar="PATH", help="Images to measure on.")] = "noise",
    image_size: Annotated[
        int | None,
        typer.Option(min=8, max=1024, help="Image size in pixels; by default 224, or that of the trainings."),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=2, help="Number of classes of the tables' networks; by default 100, or those of the trainings."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into halves and of the search.")] = 0,
    save_interrupted: Annotated[
        bool, typer.Option("--save-interrupted", help="Also save the best formula if Ctrl-C interrupts the search.")
    ] = False,
    quiet: QuietOption = False,
    output: FormatOption = Format.text,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Search for a formula that ranks topologies by accuracy.

    The best one is saved as a proxy.
    """
    from orchestrator.cli.discovering import DiscoverOptions, discover_command

    options = DiscoverOptions(
        tables=table,
        spaces=space,
        targets=target,
        recipes=recipe or (),
        epochs=epoch or (),
        test_images=test_images or (),
        name=name,
        num_classes=num_classes,
        image_size=image_size,
        data=data,
        batch_size=batch_size,
        num_networks=num_networks,
        iterations=iterations,
        max_size=max_size,
        seed=seed,
        save_interrupted=save_interrupted,
    )
    discover_command(options, quiet=quiet, as_json=as_json or output is Format.json)


@commands.command("plugins")
def _plugins(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="A kind of plug-in, such as proxies or stopping.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show the card of this plug-in.")] = None,
    output: FormatOption = Format.text,
) -> None:
    """List the installed plug-ins, or show the card of one."""
    from orchestrator.cli.showing import plugins_command

    plugins_command(kind, name, as_json=output is Format.json)
