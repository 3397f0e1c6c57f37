"""Errors as problem documents (RFC 9457): the one place that maps exceptions to HTTP.

The detail of a problem is the text of the exception, which the command line prints as well. As there, a table names the
classes as text, because importing some of them would import torch.
"""

import logging
import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from orchestrator.api.rendering import page_response
from orchestrator.safe_text import without_secrets
from trainers.yaml_source import SpecError

PROBLEM_TYPE = "application/problem+json"
BAD_INPUT, NOT_FOUND, CONFLICT, TOO_MANY, UNAVAILABLE = 422, 404, 409, 429, 503

HTTP_STATUS = {
    "orchestrator.service.references:PrivateStudyError": BAD_INPUT,
    "orchestrator.service.submitting:SubmissionError": BAD_INPUT,
    "orchestrator.service.submitting:UnknownSubmissionError": NOT_FOUND,
    "orchestrator.store.study_names:NameTakenError": BAD_INPUT,
    "orchestrator.store.submission_rows:IdempotencyError": CONFLICT,
    "orchestrator.store.submission_rows:StudyActiveError": CONFLICT,
    "orchestrator.store.submission_rows:TooManyStudiesError": TOO_MANY,
    "orchestrator.spec.truth_error:TruthError": BAD_INPUT,
    "orchestrator.spec.warm_start:WarmStartError": BAD_INPUT,
    "trainers.yaml_source:SpecError": BAD_INPUT,
    "orchestrator.study.access:UnknownStudyError": NOT_FOUND,
    "orchestrator.study.comparison:NoTrialsError": NOT_FOUND,
    "orchestrator.study.driver:DataChangedError": CONFLICT,
    "orchestrator.study.growth:SpecChangedError": CONFLICT,
    "plugins.registry:UnknownPluginError": NOT_FOUND,
    "trainers.champion:ModelError": BAD_INPUT,
    "trainers.exporting:ExportError": BAD_INPUT,
    "trainers.data.listing:DataError": BAD_INPUT,
    "trainers.training.checkpoints:CheckpointError": BAD_INPUT,
    "trainers.weights.errors:WeightsError": BAD_INPUT,
    "orchestrator.engines.interfaces:EngineUnavailableError": UNAVAILABLE,
    "orchestrator.store.errors:DatabaseUnavailableError": UNAVAILABLE,
    "trainers.storage.object_store:ObjectStoreError": UNAVAILABLE,
    "orchestrator.study.access:NoChampionError": CONFLICT,
    "orchestrator.study.access:StudyNotDeletedError": UNAVAILABLE,
    "orchestrator.study.lock:StudyBusyError": CONFLICT,
    "orchestrator.tracking.mlflow_client:TrackingUnavailable": UNAVAILABLE,
}
"""HTTP status by module and class of the exception. Other exceptions are our own mistakes or the administrator's."""
_HEADERS = {TOO_MANY: {"Retry-After": "60"}}

_logger = logging.getLogger(__name__)


class FileMistake(BaseModel):
    """One mistake in a study file."""

    file: str = Field(description="the file as the client named it")
    line: int | None = Field(description="line of the mistake, starting at 1")
    path: str = Field(description="place in the file, such as `stages[1].epochs`")
    message: str = Field(description="what must hold, what was found, and what to do")


class ProblemDocument(BaseModel):
    """Why a request failed."""

    type: str = Field(description="kind of the problem, such as `urn:vitsearch:unknown-study`")
    title: str
    status: int
    detail: str = Field(description="the same text that the command line prints")
    instance: str = Field(description="path of the request")
    errors: list[FileMistake] | None = Field(default=None, description="all mistakes of a study file")
    nearest: str | None = Field(default=None, description="the existing name with the most similar spelling")


class RequestError(Exception):
    """A request that is refused for a reason that only exists over HTTP.

    Attributes:
        status: HTTP status.
        kind: The end of the problem's type, such as `not-allowed`.
        headers: Further headers of the response.
    """

    def __init__(self, status: int, kind: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.kind, self.headers = status, kind, dict(headers or {})
        super().__init__(message)


def http_status_of(error: BaseException) -> int | None:
    """The HTTP status of an exception that the client can fix or wait for; `None` for others."""
    if isinstance(error, RequestError):
        return error.status
    names = (f"{kind.__module__}:{kind.__qualname__}" for kind in type(error).__mro__)
    return next((HTTP_STATUS[name] for name in names if name in HTTP_STATUS), None)


def asks_for_page(request: Request) -> bool:
    """Whether a browser shows the answer to a request to people."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def problem_response(request: Request, error: Exception) -> Response:
    """The problem document of an exception, or a page for people. Our own mistakes are logged, and not shown."""
    status = http_status_of(error)
    if status is None:
        number = uuid.uuid4().hex[:8]
        _logger.error("request %s %s failed (%s)", request.method, request.url.path, number, exc_info=error)
        detail = (
            f"the service must answer, but met an unexpected error. Its log has the details under {number}: tell its "
            "administrator."
        )
        return _response(request, 500, "unexpected-error", detail)
    kind = error.kind if isinstance(error, RequestError) else _kind(type(error).__name__)
    headers = error.headers if isinstance(error, RequestError) else _HEADERS.get(status, {})
    more: dict[str, Any] = {}
    if isinstance(error, SpecError):
        more["errors"] = [
            {"file": one.file, "line": one.line, "path": one.path, "message": one.message}
            for one in (error, *error.others)
        ]
    if getattr(error, "nearest", None):
        more["nearest"] = error.nearest  # type: ignore[attr-defined]
    return _response(request, status, kind, without_secrets(str(error)), more, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer the failed requests that the framework answers itself in the same way."""

    def wrong_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        lines = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"][1:]) or "the body"
            must = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            lines.append(f"{place}: must be {must}, but got {item.get('input')!r:.80}.")
        return _response(request, BAD_INPUT, "wrong-request", "\n".join(lines))

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        path = request.url.path
        detail = {
            404: f"there is nothing at {path}. /openapi.json describes all paths.",
            405: f"{path} must be requested with {dict(error.headers or {}).get('Allow', 'another method')}, but got "
            f"{request.method}.",
        }.get(error.status_code, str(error.detail))
        kind = _kind(HTTPStatus(error.status_code).phrase.title().replace(" ", ""))
        return _response(request, error.status_code, kind, detail, headers=dict(error.headers or {}))

    app.add_exception_handler(RequestValidationError, wrong_request)
    app.add_exception_handler(StarletteHTTPException, http_error)


def _response(
    request: Request,
    status: int,
    kind: str,
    detail: str,
    more: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    title = kind.replace("-", " ").capitalize()
    if asks_for_page(request):
        return page_response(request, "problem.html", status=status, headers=headers, title=title, text=detail)
    content = {
        "type": f"urn:vitsearch:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        **(more or {}),
    }
    return JSONResponse(content, status_code=status, headers=dict(headers or {}), media_type=PROBLEM_TYPE)


def _kind(name: str) -> str:
    """`UnknownStudyError` as `unknown-study`."""
    words = re.findall(r"[A-Z]+[a-z0-9]*", name.removesuffix("Error"))
    return "-".join(words).lower()
