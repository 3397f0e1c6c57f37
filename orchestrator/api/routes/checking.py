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
    spec, _ = await read_study(request, file, folder)
    return ValidStudy(
        study=spec.study,
        stages=[stage.name for stage in spec.stages],
        remarks=spec.remarks,
        spec=spec.model_dump(mode="json"),
    )


async def read_study(request: Request, file: str, folder: str | None) -> tuple[StudySpec, str]:
    """The study file in the body of a request, checked, and its text.

    Raises:
        RequestError: The body has another type.
        trainers.yaml_source.SpecError: All mistakes in it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise RequestError(
            415, "wrong-type", f"a study must be sent as application/yaml or application/json, but got {kind[:80]!r}."
        )
    raw = await request.body()
    spec = await run_in_threadpool(_parse, raw, file, folder, request.app.state.home.settings, request.app.state.roots)
    return spec, raw.decode("utf-8")


def _parse(raw: bytes, file: str, folder: str | None, settings: Settings, roots: tuple[Path, ...] | None) -> StudySpec:
    base = Path(folder) if folder else settings.data_roots[0] if settings.data_roots else Path.cwd()
    if not base.is_absolute() or "\0" in str(base):
        raise RequestError(422, "wrong-request", f"folder: must be an absolute path, but got {folder!r:.80}.")
    return parse_spec(raw, file, folder=base, roots=roots)
