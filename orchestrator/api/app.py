"""Makes the app of the service."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from orchestrator.api import pages, sessions
from orchestrator.api.errors import PROBLEM_TYPE, ProblemDocument, add_error_handlers
from orchestrator.api.home import Home
from orchestrator.api.limits import GuardRequests
from orchestrator.api.metrics import CountRequests, RequestFigures, StudyFigures
from orchestrator.api.routes import audit, checking, health, plugins, recommending, studies, submitting
from orchestrator.api.warming import warm_up
from orchestrator.settings import Settings

STATIC = Path(__file__).parent / "static"

_ABOUT = """
Find a vision transformer, and a way to train it, for your own images.

Responses are the results of stages as they are stored. A failed request gets a problem document (RFC 9457), whose
`detail` is the text that the command line prints.
"""
_PROBLEMS = {
    "4XX": {"description": "The request is refused", "model": ProblemDocument},
    "5XX": {"description": "The service cannot answer now", "model": ProblemDocument},
}


def make_service(
    settings: Settings,
    *,
    needs_token: bool = False,
    hosts: Collection[str] | None = None,
    mlflow_url: str | None = None,
) -> FastAPI:
    """The app of the service.

    Args:
        settings: Settings of the installation whose studies it serves.
        needs_token: Whether requests need an access token. Otherwise everyone who reaches the service is its user.
        hosts: Host names that requests may address; `None` for all.
        mlflow_url: Address at which browsers reach MLflow; `None` shows no links.
    """
    home = Home(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await warm_up(app)
        yield
        home.close()

    app = FastAPI(
        title="vitsearch",
        version=version("vitsearch"),
        description=_ABOUT,
        lifespan=lifespan,
        responses=_PROBLEMS,  # type: ignore[arg-type]
        docs_url=None,  # its page loads scripts from the internet
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    figures = RequestFigures()
    figures.registry.register(StudyFigures(home))
    app.state.home, app.state.figures, app.state.mlflow_url, app.state.num_streams = home, figures, mlflow_url, 0
    app.state.needs_token, app.state.is_stopping = needs_token, False
    # Whoever can submit without a token can read the files of this machine's user anyway.
    app.state.roots = settings.data_roots if needs_token or settings.data_roots else None
    for module in (studies, submitting, checking, recommending, plugins, audit, health, sessions, pages):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    add_error_handlers(app)
    _describe_problems(app)
    app.add_middleware(GuardRequests, hosts=hosts)
    app.add_middleware(CountRequests, figures=figures)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Let the OpenAPI document say that all failed requests get problem documents.

    FastAPI describes them as plain JSON, and those with wrong parameters as another model, which we do not send.
    """
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = described()
            for operations in document["paths"].values():
                for operation in operations.values():
                    responses = operation["responses"]
                    responses.pop("422", None)  # in 4XX
                    for status in responses.keys() & _PROBLEMS.keys():
                        (content,) = responses[status]["content"].values()
                        responses[status]["content"] = {PROBLEM_TYPE: content}
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(unused, None)
        return described()

    app.openapi = openapi  # type: ignore[method-assign]
