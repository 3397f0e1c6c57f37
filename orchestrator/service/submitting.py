"""Submitting studies, and following, cancelling and resuming them.

All functions take an open store. They check names and files; who may do what is checked by the caller.
"""

import hashlib
import json
import uuid
from pathlib import Path

from orchestrator.service.devices import wanted_devices
from orchestrator.service.references import with_own_references
from orchestrator.settings import Settings
from orchestrator.spec.study_file import StudySpec
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Actor, NewSubmission, SubmissionRecord, WebhookTarget
from orchestrator.store.study_files import log_of_submission
from orchestrator.store.study_names import full_name, home_owner, nearest_study
from orchestrator.study.growth import plan_study_growth

PRIORITIES = range(-10, 11)
"""Priorities among the studies of one owner; higher ones come first."""
MAX_KEY_LENGTH = 128


class UnknownSubmissionError(LookupError):
    """No study of that name was submitted.

    Args:
        name: The name.
        exists: Whether there is a study of that name, which was run in a terminal.
        nearest: The name of a submitted study with similar spelling, or `None`.
    """

    def __init__(self, name: str, *, exists: bool = False, nearest: str | None = None) -> None:
        hint = f"Did you mean {nearest!r}?" if nearest else "`vitsearch list` shows all studies."
        super().__init__(
            f"study {name!r} was run in a terminal, not submitted: `vitsearch status {name}` shows it, Ctrl-C in its "
            f"terminal stops it, and `vitsearch run FILE` continues it."
            if exists
            else f"no study {name!r} was submitted. {hint}"
        )


class SubmissionError(ValueError):
    """A submission has an invalid priority or idempotency key."""


def submit_study(
    store: Store,
    spec: StudySpec,
    spec_text: str,
    *,
    owner: str | None = None,
    priority: int = 0,
    idempotency_key: str | None = None,
    retry_failed: bool = False,
    shared: bool = False,
    webhook: WebhookTarget | None = None,
    by: Actor | None = None,
    max_active: int | None = None,
) -> SubmissionRecord:
    """Add a checked study file to the queue. If the study exists, it is resumed, or grows to the file.

    Args:
        store: The store.
        spec: The study; its name is that in the owner's file.
        spec_text: Content of the study file, for MLflow.
        owner: Owner of the study; by default that of the home.
        priority: One of `PRIORITIES`, among the studies of the owner.
        idempotency_key: A request repeated with its key returns the submission that it made.
        retry_failed: Whether failed trials of an existing study run once more.
        shared: Whether other owners may see the study. One that they see already stays shared.
        webhook: Where the end of the study is announced; by default where it was for the newest submission.
        by: Who is noted in the audit log, if the request is not a repeated one.
        max_active: Studies of the owner that may wait or run at a time, with this one.

    Raises:
        SubmissionError: The priority or the key is invalid.
        orchestrator.service.references.PrivateStudyError: The file names a study that the owner may not read.
        orchestrator.store.study_names.NameTakenError: The name contains that of another owner, or is too long.
        orchestrator.study.growth.SpecChangedError: The study exists, and cannot grow to the file.
        orchestrator.store.submission_rows.IdempotencyError: The owner used the key for another request.
        orchestrator.store.submission_rows.StudyActiveError: The study is waiting or running.
        orchestrator.store.submission_rows.TooManyStudiesError: `max_active` others of the owner wait or run.
    """
    if priority not in PRIORITIES:
        raise SubmissionError(
            f"priority: must be a whole number from {PRIORITIES.start} to {PRIORITIES.stop - 1}, but got {priority}. "
            "Change it."
        )
    key = idempotency_key
    if key is not None and not (0 < len(key) <= MAX_KEY_LENGTH and key.isprintable()):
        raise SubmissionError(
            f"idempotency key: must be 1 to {MAX_KEY_LENGTH} printable characters, but got {key!r:.150}. Change it."
        )
    owner = home_owner() if owner is None else owner
    named = with_own_references(spec, owner, store).model_copy(update={"study": full_name(spec.study, owner)})
    content = named.model_dump(mode="json")
    new = NewSubmission(
        uid=uuid.uuid4().hex[:12],
        owner=owner,
        name=named.study,
        spec=content,
        spec_text=spec_text,
        wants=wanted_devices(named),
        request_digest=_digest(content, spec_text, priority, retry_failed, shared, *([webhook.url] if webhook else [])),
        priority=priority,
        idempotency_key=idempotency_key,
        retry_failed=retry_failed,
        shared=shared,
        webhook=webhook,
    )
    added = store.queue().add_first(new, by=by, max_active=max_active)
    if added is not None:
        return added
    study = store.find_study(named.study) if store.has_study(named.study) else None
    if study is not None and not (key is not None and store.queue().has_key(owner, key)):
        plan_study_growth(store, study, named, retry_failed=retry_failed)
    return store.queue().add(new, by=by, max_active=max_active)


def find_submission(store: Store, name: str) -> SubmissionRecord:
    """The submission with that `uid`, or the newest one of the study with that full name.

    Raises:
        UnknownSubmissionError: There is none.
    """
    queue = store.queue()
    found = queue.find(name) or queue.find_latest(name)
    if found is None:
        exists = store.find_study(name) is not None
        raise UnknownSubmissionError(name, exists=exists, nearest=None if exists else _nearest(store, name))
    return found


def _nearest(store: Store, name: str) -> str | None:
    return nearest_study(name, list(store.queue().newest()))


def cancel_study(store: Store, name: str) -> SubmissionRecord:
    """Cancel a submitted study. A running one stops after its current step; what has finished is kept.

    Raises:
        UnknownSubmissionError: It was not submitted.
    """
    return store.queue().request_cancel(find_submission(store, name).uid)


def resume_study(
    store: Store, name: str, *, retry_failed: bool = False, max_active: int | None = None
) -> SubmissionRecord:
    """Let a study that was interrupted, cancelled or has failed wait for its turn again.

    Raises:
        UnknownSubmissionError: It was not submitted.
        orchestrator.store.submission_rows.StudyActiveError: Another submission of the study is active.
        orchestrator.store.submission_rows.TooManyStudiesError: `max_active` others of the owner wait or run.
    """
    uid = find_submission(store, name).uid
    return store.queue().let_wait(uid, retry_failed=retry_failed, max_active=max_active)


def log_file(settings: Settings, submission: SubmissionRecord) -> Path:
    """The file with what the drivers of a submission wrote; it exists once the first one has started."""
    return log_of_submission(settings.local_root, submission.uid)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
