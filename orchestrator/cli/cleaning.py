"""Commands that delete files: delete removes studies, prune what no champion needs."""

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from orchestrator.cli.console import fail, note, out, print_json
from orchestrator.cli.exit_status import BAD_INPUT, FAILED
from orchestrator.cli.remote import client_of
from orchestrator.settings import Settings, load_settings
from orchestrator.store.records import StudyRecord

if TYPE_CHECKING:
    from orchestrator.client import Client

_PATTERN_CHARACTERS = frozenset("*?[")


def delete_command(names: Sequence[str], server: str | None, *, yes: bool) -> None:
    """Delete studies after confirmation. If one cannot be deleted, the others are."""
    client = client_of(server)
    if client:
        _delete_there(client, names, yes=yes)
        return
    from orchestrator.study.access import (
        StudyNotDeletedError,
        delete_study,
        delete_submissions,
        open_existing,
        study_folder,
        study_places,
    )
    from orchestrator.study.lock import StudyBusyError
    from orchestrator.study.sizes import human_size, size_of

    settings = load_settings()
    begun, problems = list[str](), list[str]()
    for name in names:
        try:
            if delete_submissions(name, settings):  # there is nothing to lose
                out(f"deleted study {name!r}, which had not begun")
            else:
                begun.append(name)
        except StudyBusyError as error:
            problems.append(str(error))
    if names and not begun:
        if problems:
            fail(*problems, status=FAILED)
        return
    studies = find_studies(begun, settings)
    with open_existing(settings) as store:
        places = {one.name: study_places(settings, one, store) if store else [] for one in studies}
    size = human_size(size_of(place for found in places.values() for place in found))
    if len(studies) == 1:
        question = f"Delete study {studies[0].name!r} and everything in {study_folder(settings, studies[0])} ({size})?"
    else:
        question = (
            f"Delete {len(studies)} studies ({', '.join(one.name for one in studies)}) and all their files ({size})?"
        )
    if not yes and not typer.confirm(question):
        fail("nothing was deleted", status=FAILED)
    for study in studies:
        try:
            keeps_runs = delete_study(study, settings)
        except (StudyBusyError, StudyNotDeletedError) as error:
            problems.append(str(error))
            continue
        out(f"deleted study {study.name!r}")
        if keeps_runs:
            note("MLflow still shows its runs, because VITSEARCH_TRACKING is off")
    if problems:
        fail(*problems, status=FAILED)


def _delete_there(client: "Client", names: Sequence[str], *, yes: bool) -> None:
    """Delete studies of a service."""
    from orchestrator.client import RequestRefusedError, ServerUnavailableError

    known = [row["study"] for row in client.studies()]
    chosen = list(dict.fromkeys(one for name in names for one in _matching(name, known)))
    if not yes and not typer.confirm(f"Delete {', '.join(chosen)} at {client.url}, with all files?"):
        fail("nothing was deleted", status=FAILED)
    problems = []
    for name in chosen:
        try:
            deleted = client.delete(name)
        except (RequestRefusedError, ServerUnavailableError) as error:
            problems.append(str(error))
            continue
        out(f"deleted study {name!r}")
        if deleted["keeps_runs"]:
            note("MLflow still shows its runs, because VITSEARCH_TRACKING is off")
    if problems:
        fail("\n".join(problems), status=FAILED)


def _matching(name: str, known: Sequence[str]) -> Sequence[str]:
    """The studies of a name or pattern; an unknown name is left to the service."""
    if _PATTERN_CHARACTERS.isdisjoint(name):
        return [name]
    found = fnmatch.filter(known, name)
    if not found:
        fail(f"there is no study that matches {name!r}. `vitsearch list` shows all.", status=BAD_INPUT)
    return found


def prune_command(names: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Drop what no champion needs, of some studies or of all."""
    from orchestrator.study.access import open_existing
    from orchestrator.study.pruning import prune_study
    from orchestrator.study.sizes import human_size

    settings = load_settings()
    if names:
        studies = find_studies(names, settings)
    else:
        with open_existing(settings) as store:
            studies = store.list_studies() if store else []
    pruned = [prune_study(study, settings, dry_run=dry_run) for study in studies]
    if as_json:
        print_json([one._asdict() for one in pruned])
        return
    freed = sum(one.num_bytes_freed for one in pruned)
    if pruned:
        table = Table("study", "before", "after", "kept whole because", box=None, pad_edge=False, header_style="bold")
        for one in pruned:
            after = one.num_bytes_before - one.num_bytes_freed
            table.add_row(one.study, human_size(one.num_bytes_before), human_size(after), one.kept_because or "")
        out(table)
    would = "--dry-run: nothing was deleted; this would free" if dry_run else "freed"
    out(f"{would} {human_size(freed)}")


def find_studies(names: Sequence[str], settings: Settings) -> list[StudyRecord]:
    """The studies with some names, each once; a name with `*`, `?` or `[` is a pattern.

    Raises:
        UnknownStudyError: There is no study of some name.
    """
    from orchestrator.study.access import find_study, open_existing

    with open_existing(settings) as store:
        known = [study.name for study in store.list_studies()] if store else []
    chosen: dict[str, StudyRecord] = {}
    for name in names:
        matching = [name]
        if not _PATTERN_CHARACTERS.isdisjoint(name):
            matching = fnmatch.filter(known, name)
            if not matching:
                fail(
                    f"the pattern {name!r} must match the name of a study in {settings.home}, but matches none. "
                    "`vitsearch list` shows all.",
                    status=BAD_INPUT,
                )
        chosen |= {found: find_study(found, settings) for found in matching}
    return list(chosen.values())
