"""Reading studies: lists, results, trials, the champion, comparisons and live events."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from orchestrator.api.auth import caller_of
from orchestrator.api.errors import RequestError
from orchestrator.api.home import VisibleStudies
from orchestrator.api.live import Cursor, StudyFollower
from orchestrator.api.schemas import (
    ChampionFile,
    ChampionView,
    CompareView,
    DiffView,
    StudyLine,
    StudyList,
    StudyView,
    TrialList,
    TrialView,
)
from orchestrator.reports.finite import finite
from orchestrator.reports.summary import configuration_yaml
from orchestrator.store.records import StageRecord, StudyRecord, StudyState, TrialRecord, TrialState
from orchestrator.study.access import NoChampionError, UnknownStudyError
from orchestrator.study.comparison import compare_trials
from orchestrator.study.differing import diff_records
from plugins.registry import nearest_name
from trainers.config import Configuration
from trainers.storage.artifacts import fetched

router = APIRouter(prefix="/v1/studies", tags=["studies"], dependencies=[Depends(caller_of)])

POLL_S = 1.0
"""Seconds between two looks for events."""
MAX_STREAMS = 200
"""Live streams that one process serves at a time."""


async def _follower(
    request: Request,
    name: str,
    last_event_id: Annotated[str | None, Header(description="id of the last event received")] = None,
) -> AsyncIterator[StudyFollower]:
    """Follows a study while its stream is open. Errors are raised before the stream begins."""
    try:
        cursor = Cursor.parse(last_event_id) if last_event_id else Cursor()
    except ValueError as error:
        raise RequestError(422, "wrong-request", str(error)) from None
    await run_in_threadpool(studies_for(request).check_name, name)
    state = request.app.state
    if state.num_streams >= MAX_STREAMS:
        raise RequestError(
            503,
            "too-many-streams",
            f"at most {MAX_STREAMS} streams of events can be open at a time, but there are as many. Try again later.",
            headers={"Retry-After": "30"},
        )
    state.num_streams += 1
    try:
        yield StudyFollower(studies_for(request), name, cursor)
    finally:
        state.num_streams -= 1


FollowerOf = Annotated[StudyFollower, Depends(_follower)]
AfterQuery = Annotated[str | None, Query(description="`next` of the previous page", max_length=32)]


@router.get("", summary="List studies")
def list_studies_page(
    request: Request,
    state: Annotated[StudyState | None, Query(description="only studies in this state")] = None,
    owner: Annotated[str | None, Query(description="only studies of this owner", max_length=128)] = None,
    text: Annotated[str | None, Query(description="only studies whose names contain this", max_length=63)] = None,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=200, description="largest number of studies")] = 50,
) -> StudyList:
    """A page of studies, newest first."""
    try:
        rows, more = studies_for(request).lines(state=state, owner=owner, text=text, after=after, limit=limit)
    except ValueError as error:
        raise RequestError(422, "wrong-request", str(error)) from None
    return StudyList(studies=[StudyLine.model_validate(row) for row in rows], next=more)


@router.get("/{name}", summary="Show a study")
def show_study(request: Request, name: str) -> StudyView:
    """The state and results of a study's stages, its leaderboard and its champion."""
    return StudyView.model_validate(study_content(studies_for(request), name))


@router.get("/{name}/trials", summary="List trials")
def list_trials(
    request: Request,
    name: str,
    stage: Annotated[str | None, Query(description="only trials of this stage", max_length=63)] = None,
    state: Annotated[TrialState | None, Query(description="only trials in this state")] = None,
    curves: Annotated[bool, Query(description="whether to include the learning curves")] = False,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=500, description="largest number of trials")] = 100,
) -> TrialList:
    """A page of trials in the order in which they began."""
    home = studies_for(request)
    study = home.study(name)
    stages = home.stages(study)
    wanted = stages if stage is None else {_stage_named(stage, name, stages).id}
    pages = home.store.pages()
    # Trials that a killed driver left running are waiting to be resumed.
    is_alive = study.state == "running"
    states = None if state is None else {state, "running"} if state == "waiting" and not is_alive else {state}
    if state == "running" and not is_alive:
        states = set()
    found = pages.trials(wanted, states=states, after=_position(after) or 0, limit=limit + 1)
    views = _trial_views(home, study, [(stages[one.stage_id], one) for one in found[:limit]], with_curves=curves)
    return TrialList(trials=views, next=str(found[limit - 1].id) if len(found) > limit else None)


@router.get("/{name}/stages/{stage}/trials/{number}", summary="Show a trial")
def show_trial(
    request: Request, name: str, stage: str, number: Annotated[int, PathParameter(ge=0, lt=2**31)]
) -> TrialView:
    """One trial with its learning curve."""
    home = studies_for(request)
    study = home.study(name)
    record = _stage_named(stage, name, home.stages(study))
    trial = home.store.pages().trial(record.id, number)
    if trial is None:
        raise RequestError(
            404, "unknown-trial", f"stage {stage!r} of study {name!r} must have the trial {number}, but has none."
        )
    return _trial_views(home, study, [(record, trial)], with_curves=True)[0]


@router.get("/{name}/best", summary="Best configuration")
def show_best(request: Request, name: str) -> Configuration:
    """The champion's complete configuration."""
    return Configuration.model_validate(_champion(request, name)["configuration"])


@router.get("/{name}/best.yaml", summary="Best configuration as a file", response_class=PlainTextResponse)
def show_best_file(request: Request, name: str) -> PlainTextResponse:
    """The champion's complete configuration as a file for `vitsearch train`."""
    champion = _champion(request, name)
    configuration = Configuration.model_validate(champion["configuration"])
    text = configuration_yaml(configuration, champion["recommended_stopping"])
    return PlainTextResponse(text, media_type="application/yaml")


@router.get("/{name}/champion", summary="Champion")
def show_champion(request: Request, name: str) -> ChampionView:
    """The champion with its files, which `vitsearch predict` reads."""
    champion = _champion(request, name)
    folder = fetched(Path(champion["folder"]))
    files = [
        ChampionFile(path=path, num_bytes=(folder / path).stat().st_size, url=f"{request.url.path}/files/{path}")
        for path in _files(folder)
    ]
    return ChampionView(result={key: value for key, value in champion.items() if key != "folder"}, files=files)


@router.get("/{name}/champion/files/{path:path}", summary="A file of the champion", response_class=FileResponse)
def download_champion_file(request: Request, name: str, path: str) -> FileResponse:
    """A file of the champion's folder."""
    folder = fetched(Path(_champion(request, name)["folder"]))
    files = _files(folder)
    if path not in files:  # compared with names only, so that no path leads elsewhere
        raise RequestError(
            404, "unknown-file", f"must be a file of the champion ({', '.join(files)}), but got {path!r:.200}."
        )
    return FileResponse(folder / path, filename=Path(path).name)


@router.get("/{name}/compare", summary="Compare trials")
def compare_in_mlflow(
    request: Request,
    name: str,
    trial: Annotated[list[int], Query(description="numbers of trials; by default the best four", max_length=20)] = [],  # noqa: B006
) -> CompareView:
    """Trained trials side by side, and MLflow's page that compares them."""
    home = studies_for(request)
    found = compare_trials(home.study(name).name, trial, home.settings)
    page = None
    mlflow_url = request.app.state.mlflow_url
    if home.settings.tracking and mlflow_url is not None:
        from orchestrator.study.tracking_access import compare_page

        numbers = [one.number for one in found.trials]
        page = compare_page(found.study, found.stage, numbers, home.settings, server_url=mlflow_url)
    return CompareView(
        study=found.study.name,
        stage=found.stage.name,
        champion=found.champion,
        differing=found.differing,
        trials=_trial_views(home, found.study, [(found.stage, one) for one in found.trials], with_curves=False),
        page=page,
    )


@router.get("/{name}/diff", summary="Compare two studies")
def diff_with_another(
    request: Request, name: str, other: Annotated[str, Query(description="name of the other study", max_length=200)]
) -> DiffView:
    """What differs between two studies: their files, images, champions and results."""
    home = studies_for(request)
    found = diff_records(home.study(name), home.study(other), home.store, home.settings)
    return DiffView.model_validate(found.as_json())


@router.get("/{name}/events", summary="Live events", response_class=EventSourceResponse)
async def follow_study(request: Request, follower: FollowerOf) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events about a study until it ends: `study`, `stage`, `trial`, `report` and `end`.

    A client that was cut off sends the id of its last event in `Last-Event-ID` and misses nothing.
    """
    while not request.app.state.is_stopping:
        try:
            events = await run_in_threadpool(follower.poll)
        except (RequestError, UnknownStudyError):  # the caller may no longer see it, or it was deleted
            return
        for event in events:
            yield ServerSentEvent(event=event.kind, id=str(event.cursor), data=finite(event.data))
        if follower.has_ended:
            return
        await anyio.sleep(POLL_S)


def studies_for(request: Request) -> VisibleStudies:
    """The studies that the caller of a request may see."""
    return VisibleStudies(request.app.state.home, caller_of(request))


def study_content(home: VisibleStudies, name: str) -> dict[str, Any]:
    """The summary of a study, whose stages have a result only if they have one."""
    summary = home.summary(name)
    stages = [{**stage, "result": stage["result"] or None} for stage in summary["stages"]]
    return {**summary, "stages": stages}


def _champion(request: Request, name: str) -> dict[str, Any]:
    summary = studies_for(request).summary(name)
    champion: dict[str, Any] | None = summary["champion"]
    if champion is None:
        raise NoChampionError(name, summary["state"])
    return champion


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _stage_named(stage: str, study: str, stages: dict[int, StageRecord]) -> StageRecord:
    found = next((one for one in stages.values() if one.name == stage), None)
    if found is None:
        names = [one.name for one in stages.values()]
        nearest = nearest_name(stage, names)
        hint = f"Did you mean {nearest!r}?" if nearest else "Name one of these."
        raise RequestError(
            404, "unknown-stage", f"must be a stage of {study!r} ({', '.join(names)}), but got {stage!r}. {hint}"
        )
    return found


def _trial_views(
    home: VisibleStudies, study: StudyRecord, trials: Sequence[tuple[StageRecord, TrialRecord]], *, with_curves: bool
) -> list[TrialView]:
    """Trials of a study, each with its stage."""
    curves = home.store.pages().curves([trial.id for _, trial in trials]) if with_curves else {}
    times_s = home.store.trial_times_s([trial.id for _, trial in trials if trial.ended_at is not None])
    return [
        TrialView(
            stage=stage.name,
            trial=trial.number,
            state="waiting" if trial.state == "running" and study.state != "running" else trial.state,
            reason=trial.reason,
            topology=trial.topology,
            point=dict(trial.point),
            metrics=dict(trial.metrics),
            seed=trial.seed,
            started_at=trial.started_at,
            ended_at=trial.ended_at,
            wall_time_s=times_s.get(trial.id),
            curve=curves.get(trial.id),
        )
        for stage, trial in trials
    ]


def _position(after: str | None) -> int | None:
    if after is None:
        return None
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        raise RequestError(422, "wrong-request", f"after: must be `next` of the previous page, but got {after!r}.")
    return int(after)
