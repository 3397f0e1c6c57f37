"""Commands that run studies: here, in the background, or on a service."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.commands.options import (
    DataOption,
    EngineOption,
    Format,
    FormatOption,
    QuietOption,
    ServerOption,
    StudyArgument,
    VerifyOption,
)
from orchestrator.cli.console import note, out

commands = typer.Typer()


@commands.command("validate")
def _validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study file.")],
    data: DataOption = None,
    server: ServerOption = None,
) -> None:
    """Check a study file without running anything."""
    from orchestrator.cli.remote import client_of

    overrides = {"data.source": data} if data else {}
    client = client_of(server)
    if client:
        from orchestrator.cli.service_studies import validate_there

        validate_there(client, file, overrides=overrides)
        return
    from orchestrator.spec.study_file import load_spec

    spec = load_spec(file, overrides=overrides)
    out(f"{file}: study {spec.study!r} is valid: {' -> '.join(stage.name for stage in spec.stages)}")
    for remark in spec.remarks:
        note(remark)


@commands.command("run")
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
    """Run a study, or resume it where it stopped.

    If its file asks for more than before, the study is extended.
    """
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


@commands.command("submit")
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


@commands.command("extend")
def _extend(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The changed file of an existing study.")],
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials once more.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Let a study grow to its changed file, in the background.

    The file may ask for more trials, epochs or stages.
    """
    from orchestrator.cli.submitting import extend_command

    extend_command(file, server, retry_failed=retry_failed, as_json=output is Format.json)


@commands.command("watch")
def _watch(study: StudyArgument, server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """Follow a submitted study to its end, then show its results."""
    from orchestrator.cli.following import watch_command

    watch_command(study, server, as_json=output is Format.json)


@commands.command("logs")
def _logs(
    study: StudyArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the study ends.")] = False,
    server: ServerOption = None,
) -> None:
    """Print what a submitted study has written."""
    from orchestrator.cli.following import logs_command

    logs_command(study, server, follow=follow)


@commands.command("cancel")
def _cancel(study: StudyArgument, server: ServerOption = None, output: FormatOption = Format.text) -> None:
    """Stop a submitted study after its current step.

    What has finished is kept.
    """
    from orchestrator.cli.submitting import cancel_command

    cancel_command(study, server, as_json=output is Format.json)


@commands.command("resume")
def _resume(
    study: StudyArgument,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials once more.")] = False,
    server: ServerOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Continue a submitted study that has stopped.

    It may have failed, or have been cancelled or interrupted.
    """
    from orchestrator.cli.submitting import resume_command

    resume_command(study, server, retry_failed=retry_failed, as_json=output is Format.json)
