"""Whether the service works, and its figures."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from orchestrator.api.auth import caller_of
from orchestrator.api.schemas import Health

router = APIRouter(tags=["operation"])


@router.get("/health", summary="Whether the process answers")
async def show_health(request: Request) -> Health:
    """Answers whenever the process works; a supervisor restarts it otherwise."""
    # Not in a thread: all of them may be busy with requests that wait for the database.
    return Health(status="ok", version=request.app.version)


@router.get("/ready", summary="Whether requests can be served")
def show_readiness(request: Request) -> Health:
    """Answers if the database does as well; a load balancer sends requests elsewhere otherwise."""
    store = request.app.state.home.store
    if store is not None:
        store.pages().study_counts()
    return Health(status="ok", version=request.app.version)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    dependencies=[Depends(caller_of)],
)
def show_metrics(request: Request) -> PlainTextResponse:
    """Requests, their times, and the number of studies in each state."""
    return PlainTextResponse(generate_latest(request.app.state.figures.registry), media_type=CONTENT_TYPE_LATEST)
