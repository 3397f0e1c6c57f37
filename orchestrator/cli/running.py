"""`vitsearch run`: runs a study, handles Ctrl-C, and shows the results."""

import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from orchestrator.cli.console import fail, note, out, plugins_print_on_stderr, print_json, stderr
from orchestrator.cli.decoding import study_display
from orchestrator.cli.exit_status import INTERRUPTED, exit_on_error
from orchestrator.cli.signals import StopRequest, stop_on_signal
from orchestrator.cli.tables import study_report
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import StudySpec, load_spec
from orchestrator.stages.progress import Progress, SilentProgress
from trainers.data.cache_settings import verified_cache


def run_command(
    file: Path,
    *,
    overrides: Mapping[str, Any],
    retry_failed: bool = False,
    verify: bool = False,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a study, then print the leaderboard, the tau table, the champion's folder and the next commands."""
    spec = load_spec(file, overrides=overrides)
    options = {"--data": overrides.get("data.source"), "--engine": overrides.get("engine.name")}
    given = [part for name, value in options.items() if value for part in (name, str(value))]
    again = shlex.join(["vitsearch", "run", str(file), *given])
    text = file.read_text(encoding="utf-8")
    with verified_cache() if verify else nullcontext():
        run_and_show(
            spec,
            text,
            load_settings(),
            where=str(file),
            again=again,
            retry_failed=retry_failed,
            quiet=quiet,
            as_json=as_json,
        )


def run_and_show(
    spec: StudySpec,
    text: str,
    settings: Settings,
    *,
    where: str | None,
    again: str,
    retry_failed: bool = False,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run, resume or extend a study, then print its results.

    Args:
        spec: The study.
        text: Content of the study file.
        settings: Settings of this installation.
        where: Name of the study file, for messages about mistakes in it.
        again: The command that resumes the study.
        retry_failed: Whether failed trials run once more.
        quiet: Whether to suppress progress.
        as_json: Whether to print JSON for programs.
    """
    from orchestrator.study.access import find_summary
    from orchestrator.study.driver import existing_study, has_work, run_study

    control = StopRequest()
    kept = f"interrupted; every finished trial and epoch is kept. Resume with: {again}"
    with exit_on_error(where):
        before = existing_study(spec, settings)
        is_done = before is not None and before.state == "complete"
        if is_done and not quiet and not has_work(spec, settings, retry_failed=retry_failed):
            note(f"study {spec.study!r} is already complete; nothing is left to run")
        try:
            with (
                _display(quiet) as progress,
                stop_on_signal(control, last_words=kept),
                plugins_print_on_stderr(),
            ):
                study = run_study(
                    spec,
                    text,
                    settings,
                    progress=progress,
                    control=control,
                    retry_failed=retry_failed,
                    stops_decoding=True,
                )
        except KeyboardInterrupt:
            fail(kept, status=INTERRUPTED)
    summary = find_summary(spec.study, settings)
    if as_json:
        print_json(summary)
    elif study.state == "complete":
        out(study_report(summary))
    if study.state == "interrupted":
        if control.should_stop():
            fail(kept, status=INTERRUPTED)
        reason = (study.reason or "").rstrip(".")
        fail(
            f"study {study.name!r} was interrupted: {reason}. Every finished trial and epoch is kept. Resume with: "
            f"{again}",
            status=1,
        )
    if study.state == "failed":
        fail(f"study {study.name!r} failed: {study.reason}", status=1)


def _display(quiet: bool) -> AbstractContextManager[Progress]:
    return nullcontext(SilentProgress()) if quiet else study_display(stderr)
