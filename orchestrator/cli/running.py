"""`vitsearch run`: runs a study, watches for Ctrl-C, and shows what was found."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cli.console import fail, note, out, print_json, stderr
from orchestrator.cli.progress import LiveProgress, PlainProgress
from orchestrator.cli.signals import StopRequest, stop_on_signal
from orchestrator.cli.tables import study_report
from orchestrator.progress import SilentProgress
from orchestrator.settings import load_settings
from orchestrator.spec import load_spec


def run_command(file: Path, *, overrides: Mapping[str, Any], quiet: bool, as_json: bool) -> None:
    """Run, then print the leaderboard, the tau table, where the champion is, and what to type next."""
    from orchestrator.reports.summary import study_summary
    from orchestrator.study import (
        DataChangedError,
        SpecChangedError,
        StudyBusyError,
        existing_study,
        open_existing,
        run_study,
    )
    from trainers.sources import DataError

    spec, settings = load_spec(file, overrides=overrides), load_settings()
    control = StopRequest()
    again = shlex.join(["vitsearch", "run", str(file), *(["--data", overrides["data.source"]] if overrides else [])])
    try:
        before = existing_study(spec, settings)
        if before is not None and before.state == "complete" and not quiet:
            note(f"study {spec.study!r} is already complete; nothing is run again")
        with _display(quiet) as progress, stop_on_signal(control):
            study = run_study(spec, file.read_text(encoding="utf-8"), settings, progress=progress, control=control)
    except (SpecChangedError, DataChangedError, DataError) as error:
        fail(f"{file}: {error}", status=2)
    except StudyBusyError as error:
        fail(str(error), status=1)
    with open_existing(settings) as store:
        if store is None:  # it was just written
            raise LookupError(f"the database {settings.database_url} has gone")
        summary = study_summary(store, study)
    if as_json:
        print_json(summary)
    elif study.state == "complete":
        out(study_report(summary))
    if study.state == "interrupted":
        fail(f"interrupted; every finished trial and epoch is kept. Go on with: {again}", status=130)
    if study.state == "failed":
        fail(f"study {study.name!r} failed: {study.reason}", status=1)


def _display(quiet: bool) -> Any:
    if quiet:
        return _silent()
    return LiveProgress(stderr) if stderr.is_terminal else PlainProgress(stderr)


@contextmanager
def _silent() -> Iterator[SilentProgress]:
    yield SilentProgress()
