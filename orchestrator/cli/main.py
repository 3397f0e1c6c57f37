"""`vitsearch`: defines the commands and shows their errors."""

import logging
import os
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.console import fail, note, out
from orchestrator.cli.exit_status import INTERRUPTED, exit_on_error, exit_without_resources
from orchestrator.cli.help_text import Commands
from orchestrator.cli.quiet import quiet_libraries
from orchestrator.safe_text import SafeFormatter
from trainers.export_formats import ExportFormat

app = typer.Typer(
    name="vitsearch",
    cls=Commands,
    help="Find a vision transformer, and a way to train it, for your own images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


tokens = typer.Typer(cls=Commands, help="Manage the access tokens of the service.", no_args_is_help=True)
app.add_typer(tokens, name="token")
owners = typer.Typer(cls=Commands, help="Show and set the shares of the owners of studies.", no_args_is_help=True)
app.add_typer(owners, name="owner")


class Format(StrEnum):
    """Output format of results."""

    text = "text"
    json = "json"


class RoleName(StrEnum):
    """Roles of an access token."""

    viewer = "viewer"
    submitter = "submitter"
    admin = "admin"


class PartName(StrEnum):
    """Parts of a data set that a model can be evaluated on."""

    test = "test"
    validation = "validation"
    train = "train"
    all = "all"


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


def main() -> None:
    """Entry point of the console script: runs a command and turns our errors into one message and an exit status.

    Exit status: 0 success, 1 the study or command could not reach its goal, 2 invalid input, 130 interrupted.
    """
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


@app.command("run")
def _run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file, such as studies/quickstart.yaml.")],
    data: DataOption = None,
    engine: EngineOption = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed trials of an existing study once more.")
    ] = False,
    verify: VerifyOption = False,
    quiet: QuietOption = False,
    output: FormatOption = Format.text,
) -> None:
    """Run a study, resume it where it stopped, or extend it if its file asks for more."""
    from orchestrator.cli.running import run_command

    given = {"data.source": data, "engine.name": engine}
    overrides = {name: value for name, value in given.items() if value}
    run_command(
        file,
        overrides=overrides,
        retry_failed=retry_failed,
        verify=verify,
        quiet=quiet,
        as_json=output is Format.json,
    )


@app.command("submit")
def _submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file, such as studies/quickstart.yaml.")],
    data: DataOption = None,
    engine: EngineOption = None,
    priority: Annotated[
        int, typer.Option("--priority", min=-10, max=10, help="Among your waiting studies; higher ones run first.")
    ] = 0,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Submitting again with the same key submits nothing new."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed trials of an existing study once more.")
    ] = False,
    share: Annotated[
        bool, typer.Option("--share", help="Let others see the study; with a service for several people.")
    ] = False,
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook",
            metavar="URL",
            help="Address that gets a request when the study ends, signed with VITSEARCH_WEBHOOK_SECRET.",
        ),
    ] = None,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Run a study in the background, where it outlives the terminal."""
    from orchestrator.cli.submitting import submit_command

    given = {"data.source": data, "engine.name": engine}
    submit_command(
        file,
        server,
        overrides={name: value for name, value in given.items() if value},
        priority=priority,
        idempotency_key=key,
        retry_failed=retry_failed,
        shared=share,
        webhook=webhook,
        as_json=output is Format.json,
    )


@app.command("extend")
def _extend(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The changed file of an existing study.")],
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials once more.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Let a study grow to more trials, epochs or stages, in the background."""
    from orchestrator.cli.submitting import extend_command

    extend_command(file, server, retry_failed=retry_failed, as_json=output is Format.json)


@app.command("watch")
def _watch(study: StudyArgument, server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """Follow a submitted study to its end, then show its results."""
    from orchestrator.cli.following import watch_command

    watch_command(study, server, as_json=output is Format.json)


@app.command("logs")
def _logs(
    study: StudyArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the study ends.")] = False,
    server: ServerOption = None,
) -> None:
    """Print what a submitted study has written."""
    from orchestrator.cli.following import logs_command

    logs_command(study, server, follow=follow)


@app.command("cancel")
def _cancel(study: StudyArgument, server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """Stop a submitted study after its current step; what has finished is kept."""
    from orchestrator.cli.submitting import cancel_command

    cancel_command(study, server, as_json=output is Format.json)


@app.command("resume")
def _resume(
    study: StudyArgument,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials once more.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Continue a submitted study that failed, was cancelled or was interrupted."""
    from orchestrator.cli.submitting import resume_command

    resume_command(study, server, retry_failed=retry_failed, as_json=output is Format.json)


@app.command("share")
def _share(
    study: StudyArgument,
    stop: Annotated[bool, typer.Option("--stop", help="Share it no longer.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Let others see a study of a service: its results, report, configuration and champion."""
    from orchestrator.cli.sharing import share_command

    share_command(study, server, shared=not stop, as_json=output is Format.json)


@app.command("download")
def _download(
    study: StudyArgument,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="New folder; by default the name of the study.")
    ] = None,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Copy the champion of a study from a service, for `predict`, `evaluate` and `export` on this machine."""
    from orchestrator.cli.sharing import download_command

    download_command(study, server, folder=folder, as_json=output is Format.json)


@app.command("correlate")
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
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="NAME", help="Recipe in each table of trainings, if it has several."),
    ] = None,
    epoch: Annotated[
        list[int] | None,
        typer.Option("--epoch", min=1, help="Epoch in each table of trainings; by default the last."),
    ] = None,
    test_images: Annotated[
        list[int] | None,
        typer.Option(
            "--test-images",
            min=1,
            help="Number of images that measured the accuracies of each table, to estimate the tau of a perfect score; "
            "known for a table of trainings.",
        ),
    ] = None,
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
    """Measure how well training-free scores predict accuracy, and whether any beats counting parameters."""
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


@app.command("discover")
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
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="NAME", help="Recipe in each table of trainings, if it has several."),
    ] = None,
    epoch: Annotated[
        list[int] | None,
        typer.Option("--epoch", min=1, help="Epoch in each table of trainings; by default the last."),
    ] = None,
    test_images: Annotated[
        list[int] | None,
        typer.Option(
            "--test-images",
            min=1,
            help="Number of images that measured the accuracies of each table, to estimate the tau of a perfect score; "
            "known for a table of trainings.",
        ),
    ] = None,
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
    """Search for a formula that ranks topologies by their accuracy, and save it as a proxy."""
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


@app.command("validate")
def _validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file.")], data: DataOption = None
) -> None:
    """Check a study file without running anything."""
    from orchestrator.spec.study_file import load_spec

    spec = load_spec(file, overrides={"data.source": data} if data else {})
    out(f"{file}: study {spec.study!r} is valid: {' -> '.join(stage.name for stage in spec.stages)}")
    for remark in spec.remarks:
        note(remark)


@app.command("list")
def _list(server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """List all studies, newest first."""
    from orchestrator.cli.showing import list_command

    list_command(server, as_json=output is Format.json)


@app.command("status")
def _status(study: StudyArgument, server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """Show the state and results of a study's stages, and its champion."""
    from orchestrator.cli.showing import status_command

    status_command(study, server, as_json=output is Format.json)


@app.command("trials")
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


@app.command("report")
def _report(
    study: StudyArgument,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; by default STUDY-report.html.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write a report on a study: one web page with its data, search, results, mistakes, and how to use it."""
    from orchestrator.cli.reporting import report_command

    report_command(study, server, file=file, overwrite=overwrite, as_json=output is Format.json)


@app.command("best")
def _best(study: StudyArgument, server: ServerOption = None) -> None:
    """Print the champion's complete configuration file, for `vitsearch train`."""
    from orchestrator.cli.showing import best_command

    best_command(study, server)


@app.command("train")
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


@app.command("data")
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


@app.command("predict")
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


@app.command("export")
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
    """Write a model for other programs, with its preprocessing and class names, or a study's searches for Optuna."""
    from orchestrator.cli.exporting import export_command, export_optuna_command

    if (export_format is None) == (optuna is None) or (optuna is not None and file is not None):
        raise typer.BadParameter(
            f"name either --format ({', '.join(list(ExportFormat)[:-1])} or {list(ExportFormat)[-1]}) or --optuna URL"
        )
    if optuna is not None:
        export_optuna_command(model, optuna, overwrite=overwrite, as_json=as_json)
    elif export_format is not None:
        export_command(model, export_format, file=file, overwrite=overwrite, as_json=as_json)


@app.command("evaluate")
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
    """Judge a model on labelled images: metrics with intervals, classes, calibration and mistakes."""
    from orchestrator.cli.evaluating import evaluate_command

    evaluate_command(
        model,
        data,
        part=part.value if part else None,
        folder=folder,
        skip_broken=skip_broken,
        as_json=output is Format.json,
    )


@app.command("plugins")
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


@app.command("compare")
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
    """Compare trained trials: a table of what differs, and the same as a page of MLflow."""
    from orchestrator.cli.comparing import compare_command

    compare_command(study, trials or (), server, port=port, as_json=output is Format.json, open_page=open_page)


@app.command("diff")
def _diff(
    first: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study.")],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="Name of another study.")],
    output: FormatOption = Format.text,
) -> None:
    """Show what differs between two studies: files, images, champions and results."""
    from orchestrator.cli.differing import diff_command

    diff_command(first, second, as_json=output is Format.json)


@app.command("recommend")
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
    """Find finished studies of data like yours, with the configuration that each found and what it gave."""
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


@app.command("ui")
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
    """Start MLflow's web interface for the studies, and open the page of a study."""
    from orchestrator.cli.serving import ui_command

    ui_command(port, study, host=host, asks_login=auth)


@app.command("sync")
def _sync(study: StudyArgument) -> None:
    """Send a study to MLflow once more, after its runs were deleted there."""
    from orchestrator.cli.serving import sync_command

    sync_command(study)


@app.command("serve")
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
    """Serve the studies to browsers and other machines, and run those that are submitted."""
    from orchestrator.cli.hosting import serve_command

    serve_command(host, port, mlflow_url, runs_studies=runs_studies)


@app.command("delete")
def _delete(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Names of studies, or quoted patterns such as 'test-*'.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    server: ServerOption = None,
) -> None:
    """Delete studies with all their files. Their MLflow experiments go to MLflow's trash."""
    from orchestrator.cli.cleaning import delete_command

    delete_command(studies, server, yes=yes)


@app.command("backup")
def _backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the backup.")],
    no_objects: Annotated[
        bool,
        typer.Option("--no-objects", help="Leave out what an object store holds, if it keeps copies by other means."),
    ] = False,
) -> None:
    """Copy all studies, models and databases into a new folder. Studies may run meanwhile."""
    from orchestrator.cli.safekeeping import backup_command

    backup_command(folder, with_objects=not no_objects)


@app.command("restore")
def _restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `vitsearch backup` made.")],
) -> None:
    """Fill a new, empty home from a backup."""
    from orchestrator.cli.safekeeping import restore_command

    restore_command(folder)


@app.command("prune")
def _prune(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY...]", help="Names or quoted patterns; by default all studies.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show how much would be freed.")] = False,
    output: FormatOption = Format.text,
) -> None:
    """Drop checkpoints of complete studies, which their champions do not need."""
    from orchestrator.cli.cleaning import prune_command

    prune_command(studies or [], dry_run=dry_run, as_json=output is Format.json)


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
