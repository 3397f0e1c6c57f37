"""Checking a study file without submitting it."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.api.auth import caller_of
from orchestrator.api.errors import RequestError
from orchestrator.api.schemas import ValidStudy
from orchestrator.settings import Settings
from orchestrator.spec.study_file import StudySpec, parse_spec

router = APIRouter(prefix="/v1", tags=["submitting"], dependencies=[Depends(caller_of)])

EXAMPLE = """\
study: digits
data: {source: digits}
stages:
  - {stage: screen, num_trials: 64}
  - {stage: train, num_trials: 10, epochs: 36}
  - {stage: promote}
"""
_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/plain", "application/json", "")

STUDY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The study file, as YAML or JSON.",
        "content": {
            "application/yaml": {"schema": {"type": "string"}, "example": EXAMPLE},
            "application/json": {
                "schema": {"type": "object"},
                "example": {
                    "study": "digits",
                    "data": {"source": "digits"},
                    "stages": [
                        {"stage": "screen", "num_trials": 64},
                        {"stage": "train", "num_trials": 10, "epochs": 36},
                        {"stage": "promote"},
                    ],
                },
            },
        },
    }
}
"""OpenAPI's description of a body that is a study file."""

FileQuery = Annotated[str, Query(description="name of the file, for messages", max_length=200)]
FolderQuery = Annotated[
    str | None,
    Query(
        description="folder on this service's machine that relative paths in the file refer to; by default the first "
        "data folder",
        max_length=1000,
    ),
]


@router.post("/validate", summary="Check a study file", openapi_extra=STUDY_BODY)
async def validate_study(request: Request, file: FileQuery = "study.yaml", folder: FolderQuery = None) -> ValidStudy:
    """Check a study file without starting anything. All mistakes are reported, with their lines."""
    spec, _ = await run_in_threadpool(study_of_request, request, await study_body(request), file, folder)
    return ValidStudy(
        study=spec.study,
        stages=[stage.name for stage in spec.stages],
        remarks=spec.remarks,
        spec=spec.model_dump(mode="json"),
    )


async def study_body(request: Request) -> bytes:
    """The body of a request, which should be a study file.

    Raises:
        RequestError: It has another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise RequestError(
            415, "wrong-type", f"a study must be sent as application/yaml or application/json, but got {kind[:80]!r}."
        )
    return await request.body()


def study_of_request(request: Request, raw: bytes, file: str, folder: str | None) -> tuple[StudySpec, str]:
    """The study file that was sent, checked, and its text. Call it in a thread.

    Raises:
        RequestError: The folder is not absolute.
        trainers.yaml_source.SpecError: All mistakes in the file.
    """
    settings: Settings = request.app.state.home.settings
    base = Path(folder) if folder else settings.data_roots[0] if settings.data_roots else Path.cwd()
    if not base.is_absolute() or "\0" in str(base):
        raise RequestError(422, "wrong-request", f"folder: must be an absolute path, but got {folder!r:.80}.")
    spec = parse_spec(raw, file, folder=base, roots=request.app.state.roots)
    return spec, raw.decode("utf-8")
