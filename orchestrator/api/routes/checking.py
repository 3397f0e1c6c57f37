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
from trainers.data.sources import BUILT_IN
from trainers.yaml_source import SpecError, YamlSource, expanded_path, parse_yaml

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
    given = None if folder is None else Path(folder)
    if given is not None and (not given.is_absolute() or "\0" in str(given)):
        raise RequestError(422, "wrong-request", f"folder: must be an absolute path, but got {folder!r:.80}.")
    if given is not None and not settings.data_roots and not given.is_dir():
        given = None  # that of another machine, from which a tunnel leads here
    base = given or (settings.data_roots[0] if settings.data_roots else Path.cwd())
    wrong: SpecError | None = None
    try:
        spec = parse_spec(raw, file, folder=base, roots=request.app.state.roots)
    except SpecError as error:
        wrong = error if given else _with_data_folders(error, raw, file, settings)
    if wrong is None and given is None and not settings.data_roots:
        wrong = _relative_without_folders(parse_yaml(raw, file))
    if wrong is not None:
        raise wrong
    return spec, raw.decode("utf-8")


def _with_data_folders(error: SpecError, raw: bytes, file: str, settings: Settings) -> SpecError:
    """The same mistakes; that of a relative source which does not exist names the folders for images."""
    mistakes = [error, *error.others]
    if not any(_is_missing(one) for one in mistakes):
        return error
    content = parse_yaml(raw, file)
    source = _relative_source(content)
    if source is None:
        return error
    roots = settings.data_roots
    missing = _relative_without_folders(content)
    if roots:
        missing = content.error(
            ("data", "source"),
            f"must name images in {roots[0]}, the data folder of the service, but there is no {source!r}. Images are "
            "not sent with a study file: copy them there, or write an absolute path in a data folder of the service "
            f"({', '.join(map(str, roots))}).",
        )
    assert missing is not None, "the source is relative"
    told = [missing if _is_missing(one) else one for one in mistakes]
    for one in told:
        one.others = ()
    told[0].others = tuple(told[1:])
    return told[0]


def _is_missing(mistake: SpecError) -> bool:
    return mistake.path == "data.source" and " does not exist" in mistake.message


def _relative_without_folders(content: YamlSource) -> SpecError | None:
    """The mistake of a relative source in a file from elsewhere, if the service has no data folders."""
    source = _relative_source(content)
    if source is None:
        return None
    return content.error(
        ("data", "source"),
        f"must be an absolute path on the machine of the service, but got {source!r}. Images are not sent with a study "
        "file: copy them to that machine.",
    )


def _relative_source(content: YamlSource) -> str | None:
    """The source of the images, if it is a relative path."""
    block = content.data.get("data")
    source = block.get("source") if isinstance(block, dict) else None
    if not isinstance(source, str) or not source or source in BUILT_IN:
        return None
    return None if expanded_path(source).is_absolute() else source
