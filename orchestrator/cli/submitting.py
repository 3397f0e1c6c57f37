"""`vitsearch submit`, `cancel` and `resume`: studies that run in the background."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cli.console import note, out, print_json
from orchestrator.cli.exit_status import exit_on_error
from orchestrator.cli.remote import client_of
from orchestrator.cli.service_studies import cancel_there, submit_there, tell_local_images, tell_submission
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord, state_words
from trainers.yaml_source import read_yaml


def submit_command(
    file: Path,
    server: str | None,
    *,
    overrides: Mapping[str, Any],
    priority: int,
    idempotency_key: str | None,
    retry_failed: bool,
    shared: bool = False,
    webhook: str | None = None,
    as_json: bool,
) -> None:
    """Submit a study, and start the process that runs it if there is none."""
    client = client_of(server)
    settings = load_settings()
    secret = None if settings.webhook_secret is None else settings.webhook_secret.get_secret_value()
    if client:
        submit_there(
            client,
            file,
            overrides=overrides,
            priority=priority,
            key=idempotency_key,
            retry_failed=retry_failed,
            shared=shared,
            webhook=webhook,
            webhook_secret=secret,
            as_json=as_json,
        )
        return
    from orchestrator.service.submitting import submit_study
    from orchestrator.service.supervisor import start_queue
    from orchestrator.service.webhooks import webhook_target
    from orchestrator.study.states import why_waiting

    spec = load_spec(file, overrides=overrides)
    text = file.read_text(encoding="utf-8")
    with exit_on_error(file), opened_store(settings) as store:
        submission = submit_study(
            store,
            spec,
            text,
            priority=priority,
            idempotency_key=idempotency_key,
            retry_failed=retry_failed,
            shared=shared,
            webhook=webhook_target(webhook, secret, settings, store),
        )
        start_queue(settings)
        _show(submission, why_waiting(store, submission), as_json=as_json)


def extend_command(file: Path, server: str | None, *, retry_failed: bool, as_json: bool) -> None:
    """Let an existing study grow to a changed file, in the background."""
    client = client_of(server)
    if client:
        # A file without a name is sent to be checked, which names all mistakes.
        tell_local_images(client, file)
        name = str(read_yaml(file).data.get("study") or client.validate(file)["study"])
        tell_submission(client, client.extend(name, file, retry_failed=retry_failed), as_json=as_json)
        return
    from orchestrator.study.access import find_study

    find_study(load_spec(file).study, load_settings())
    submit_command(
        file, None, overrides={}, priority=0, idempotency_key=None, retry_failed=retry_failed, as_json=as_json
    )


def cancel_command(name: str, server: str | None, *, as_json: bool) -> None:
    """Cancel a submitted study."""
    client = client_of(server)
    if client:
        cancel_there(client, name, as_json=as_json)
        return
    from orchestrator.service.submitting import cancel_study

    with opened_store(load_settings()) as store:
        found = cancel_study(store, name)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif found.cancel_requested:
        out(f"study {found.name!r} stops after its current step; every finished trial and epoch is kept")
    elif found.state == "cancelled":
        out(f"study {found.name!r} is cancelled. Resume it with: vitsearch resume {found.name}")
    else:
        out(f"study {found.name!r} is {found.state} already; nothing was changed")


def resume_command(name: str, server: str | None, *, retry_failed: bool, as_json: bool) -> None:
    """Let a submitted study wait for its turn again."""
    client = client_of(server)
    if client:
        tell_submission(client, client.resume(name, retry_failed=retry_failed), as_json=as_json)
        return
    from orchestrator.service.submitting import resume_study
    from orchestrator.service.supervisor import start_queue
    from orchestrator.study.states import why_waiting

    settings = load_settings()
    with opened_store(settings) as store:
        found = resume_study(store, name, retry_failed=retry_failed)
        start_queue(settings)
        _show(found, why_waiting(store, found), as_json=as_json)


@contextmanager
def opened_store(settings: Settings) -> Iterator[Store]:
    """The store of the home, which is created if necessary."""
    from orchestrator.study.access import make_home

    make_home(settings)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    try:
        yield store
    finally:
        store.close()


def _show(submission: SubmissionRecord, why: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json(submission.model_dump(mode="json"))
        return
    out(f"study {submission.name!r} {state_words(submission.state, why)}")
    if submission.is_active:
        note(f"It runs in the background. Watch it with: vitsearch watch {submission.name}")
