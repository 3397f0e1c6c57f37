"""Submitting studies, and changing what was submitted."""

import codecs
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.api.auth import Caller, CallerOf, caller_of
from orchestrator.api.errors import RequestError
from orchestrator.api.home import VisibleStudies
from orchestrator.api.routes.checking import STUDY_BODY, FileQuery, FolderQuery, study_body, study_of_request
from orchestrator.api.routes.studies import studies_for
from orchestrator.api.schemas import DeletedStudy, SubmissionView, WebhookView
from orchestrator.service.submitting import (
    UnknownSubmissionError,
    cancel_study,
    log_file,
    resume_study,
    submit_study,
)
from orchestrator.service.webhooks import MAX_ADDRESS, MAX_SECRET, shown_address, webhook_target
from orchestrator.spec.study_file import StudySpec
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Actor, SubmissionRecord
from orchestrator.store.study_names import full_name, owner_of
from orchestrator.study.access import UnknownStudyError, delete_study, delete_submissions
from orchestrator.study.states import why_waiting

router = APIRouter(prefix="/v1/studies", tags=["submitting"], dependencies=[Depends(caller_of)])

MAX_ACTIVE = 2000
"""Studies of one owner that may wait or run at a time."""
MAX_LOG_BYTES = 1024 * 1024
"""Largest part of a log in one response."""

PriorityQuery = Annotated[
    int, Query(ge=-10, le=10, description="among the waiting studies of the same owner, higher ones run first")
]
SharedQuery = Annotated[bool, Query(description="whether other owners may see the study")]
RetryQuery = Annotated[bool, Query(description="whether failed trials of an existing study run once more")]
WebhookHeader = Annotated[
    str | None,
    Header(
        alias="Webhook-URL",
        description="address that gets a signed request when the study ends; the administrator allows its host",
        max_length=MAX_ADDRESS,
    ),
]
SecretHeader = Annotated[
    str | None, Header(alias="Webhook-Secret", description="secret with which it is signed", max_length=MAX_SECRET)
]


@router.post("", status_code=201, summary="Submit a study", openapi_extra=STUDY_BODY)
async def submit_new_study(
    request: Request,
    response: Response,
    caller: CallerOf,
    file: FileQuery = "study.yaml",
    folder: FolderQuery = None,
    priority: PriorityQuery = 0,
    shared: SharedQuery = False,
    retry_failed: RetryQuery = False,
    idempotency_key: Annotated[
        str | None,
        Header(description="a request repeated with its key returns the submission that it made", max_length=128),
    ] = None,
    webhook_url: WebhookHeader = None,
    webhook_secret: SecretHeader = None,
) -> SubmissionView:
    """Add a study file to the queue. If a study of that name exists, it is resumed, or grows to the file."""
    raw = await study_body(request)

    def submit() -> SubmissionView:
        home = request.app.state.home
        store = home.open()
        _need_submitter(store, caller, "submit", file)
        spec, text = study_of_request(request, raw, file, folder)
        webhook = webhook_target(webhook_url, webhook_secret, home.settings, store)
        record = submit_study(
            store,
            spec,
            text,
            owner=caller.owner,
            priority=priority,
            idempotency_key=idempotency_key,
            retry_failed=retry_failed,
            shared=shared,
            webhook=webhook,
            by=Actor(caller.owner, "submit", caller.token),
            max_active=MAX_ACTIVE,
        )
        return _view(store, record)

    view = await run_in_threadpool(submit)
    response.headers["Location"] = f"/v1/studies/{view.study}"
    return view


@router.post("/{name}/extend", status_code=201, summary="Extend a study", openapi_extra=STUDY_BODY)
async def extend_study(
    request: Request,
    name: str,
    caller: CallerOf,
    file: FileQuery = "study.yaml",
    folder: FolderQuery = None,
    retry_failed: RetryQuery = False,
) -> SubmissionView:
    """Let a study grow to a file with more trials, epochs or stages. What has finished is kept."""
    raw = await study_body(request)

    def extend() -> SubmissionView:
        spec, text = study_of_request(request, raw, file, folder)
        visible = studies_for(request)
        full = _name_in_database(visible, name)
        _need_owner(visible.store, caller, "extend", full)
        owner = owner_of(full)
        _check_name(spec, full, owner)
        by = Actor(caller.owner, "extend", caller.token)
        record = submit_study(
            visible.store, spec, text, owner=owner, retry_failed=retry_failed, by=by, max_active=MAX_ACTIVE
        )
        return _view(visible.store, record)

    return await run_in_threadpool(extend)


@router.get("/{name}/submission", summary="Show the newest submission of a study")
def show_submission(request: Request, name: str) -> SubmissionView:
    """The state of a study in the queue, and why it waits."""
    visible = studies_for(request)
    return _view(visible.store, _submission(visible, name))


@router.post("/{name}/cancel", summary="Cancel a study")
def cancel_submitted_study(request: Request, name: str, caller: CallerOf) -> SubmissionView:
    """Stop a study after its current step, or take it out of the queue. What has finished is kept."""
    visible = studies_for(request)
    found = _submission(visible, name)
    _need_owner(visible.store, caller, "cancel", found.name)
    record = cancel_study(visible.store, found.uid)
    _audit(visible.store, caller, "cancel", record.name, submission=record.uid)
    return _view(visible.store, record)


@router.post("/{name}/resume", summary="Resume a study")
def resume_submitted_study(
    request: Request, name: str, caller: CallerOf, retry_failed: RetryQuery = False
) -> SubmissionView:
    """Let a study that was cancelled, was interrupted or has failed wait for its turn again."""
    visible = studies_for(request)
    found = _submission(visible, name)
    _need_owner(visible.store, caller, "resume", found.name)
    record = resume_study(visible.store, found.uid, retry_failed=retry_failed, max_active=MAX_ACTIVE)
    _audit(visible.store, caller, "resume", record.name, submission=record.uid)
    return _view(visible.store, record)


@router.post("/{name}/share", summary="Share a study")
def share_study(request: Request, name: str, caller: CallerOf, shared: SharedQuery = True) -> SubmissionView:
    """Let other owners see a study, or no longer."""
    visible = studies_for(request)
    found = _submission(visible, name)
    _need_owner(visible.store, caller, "share", found.name)
    visible.store.queue().share(found.name, shared=shared)
    _audit(visible.store, caller, "share", found.name, shared=shared)
    return _view(visible.store, _submission(visible, name))


@router.delete("/{name}", summary="Delete a study")
def delete_submitted_study(request: Request, name: str, caller: CallerOf) -> DeletedStudy:
    """Delete a study with all its files. Its MLflow experiment goes to MLflow's trash. A running study is refused."""
    visible = studies_for(request)
    submission = visible.submission(name)
    if submission is not None:
        _need_owner(visible.store, caller, "delete", submission.name)
        if delete_submissions(submission.name, visible.settings):  # it never began
            _audit(visible.store, caller, "delete", submission.name)
            return DeletedStudy(study=submission.name, keeps_runs=False)
    study = visible.study(name)
    _need_owner(visible.store, caller, "delete", study.name)
    keeps_runs = delete_study(study, visible.settings)
    _audit(visible.store, caller, "delete", study.name)
    return DeletedStudy(study=study.name, keeps_runs=keeps_runs)


@router.get("/{name}/log", summary="Log of a study", response_class=PlainTextResponse)
def show_log(
    request: Request,
    name: str,
    offset: Annotated[int, Query(ge=0, le=2**53, description="number of bytes to skip")] = 0,
) -> PlainTextResponse:
    """What the drivers of a submitted study wrote. The header `Next-Offset` is the `offset` for what follows."""
    visible = studies_for(request)
    path = log_file(visible.settings, _submission(visible, name))
    content = b""
    if path.is_file():
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(MAX_LOG_BYTES)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content)
    num_read = len(content) - len(decoder.getstate()[0])  # without the begin of a character
    return PlainTextResponse(text, headers={"Next-Offset": str(offset + num_read)})


def _name_in_database(visible: VisibleStudies, name: str) -> str:
    try:
        return visible.study(name).name
    except UnknownStudyError:
        submission = visible.submission(name)
        if submission is None:
            raise
        return submission.name


def _submission(visible: VisibleStudies, name: str) -> SubmissionRecord:
    found = visible.submission(name)
    if found is not None:
        return found
    try:
        visible.study(name)
    except UnknownStudyError as error:
        raise error from None
    raise UnknownSubmissionError(name)


def _view(store: Store, record: SubmissionRecord) -> SubmissionView:
    return SubmissionView(
        uid=record.uid,
        study=record.name,
        owner=record.owner,
        state=record.state,
        reason=why_waiting(store, record) or record.reason,
        priority=record.priority,
        shared=record.shared,
        cancel_requested=record.cancel_requested,
        device_time_s=record.device_time_s,
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        webhook=_webhook_view(store, record),
    )


def _webhook_view(store: Store, record: SubmissionRecord) -> WebhookView | None:
    if not record.has_webhook:
        return None
    target = store.queue().webhook_of(record.uid)
    if target is None:
        return None
    sent = next(iter(store.webhooks().of_submission(record.uid)), None)
    if sent is None or record.is_active:  # of an earlier end, before it was resumed
        return WebhookView(address=shown_address(target.url), state=None, num_tries=0, error=None, ended_at=None)
    return WebhookView(
        address=shown_address(target.url),
        state=sent.state,
        num_tries=sent.num_tries,
        error=sent.error,
        ended_at=sent.ended_at,
    )


def _check_name(spec: StudySpec, name: str, owner: str) -> None:
    if full_name(spec.study, owner) != name:
        raise RequestError(
            422,
            "other-study",
            f"study: must be that of the study to extend, {name!r}, but got {spec.study!r}. Correct it.",
        )


def _need_submitter(store: Store, caller: Caller, action: str, subject: str) -> None:
    if not caller.may_submit():
        _refuse(store, caller, action, subject)


def _need_owner(store: Store, caller: Caller, action: str, name: str) -> None:
    if not caller.may_change(owner_of(name)):
        _refuse(store, caller, action, name)


def _refuse(store: Store, caller: Caller, action: str, subject: str) -> None:
    store.audit_log().add(caller.owner, action, subject, outcome="refused", token=caller.token)
    must = "the token must have the role submitter" if caller.role == "viewer" else "the study must be your own"
    found = f"it has the role {caller.role}" if caller.role == "viewer" else f"{subject!r} is not"
    raise RequestError(403, "not-allowed", f"to {action}, {must}, but {found}. Ask an admin.")


def _audit(store: Store, caller: Caller, action: str, subject: str, **details: object) -> None:
    store.audit_log().add(caller.owner, action, subject, token=caller.token, details=details)
