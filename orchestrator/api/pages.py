"""The pages for people. They are rendered here, can be read without scripts, and load nothing from other machines."""

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from orchestrator.api.auth import caller_of
from orchestrator.api.curves import curve_picture
from orchestrator.api.errors import RequestError
from orchestrator.api.home import VisibleStudies
from orchestrator.api.rendering import duration_text, page_response
from orchestrator.api.routes.checking import EXAMPLE
from orchestrator.api.routes.studies import studies_for, study_content
from orchestrator.stages.kind import stage_kind
from orchestrator.store.records import TrialRecord
from orchestrator.study.access import UnknownStudyError
from plugins.metrics.deciding import DecidingMetric

router = APIRouter(include_in_schema=False, dependencies=[Depends(caller_of)])

_PER_PAGE = 50
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"
)
"""The report contains its style and its script. What people wrote is escaped in it."""
_drawing = threading.Lock()  # matplotlib draws in one thread at a time
MAX_REPORTS = 4
"""Reports that wait to be drawn at a time; more of them would keep all threads from other requests."""
_report_places = threading.BoundedSemaphore(MAX_REPORTS)
_MAX_CURVES = 8
_MAX_ROWS = 10
_STATES = ("running", "waiting", "complete", "interrupted", "cancelled", "failed")


@router.get("/")
def start_page(
    request: Request, state: str | None = None, text: str | None = None, after: str | None = None
) -> Response:
    """The studies, and a place to drop a study file."""
    chosen = state if state in _STATES else None
    visible, given = studies_for(request), (text or "")[:63] or None
    try:
        rows, more = visible.lines(state=chosen, owner=None, text=given, after=after, limit=_PER_PAGE)
    except ValueError as error:
        raise RequestError(422, "wrong-request", str(error)) from None
    return page_response(
        request, "start.html", studies=rows, more=more, state=chosen, states=_STATES, text=text or "", example=EXAMPLE
    )


@router.get("/studies/{name}")
def show_study_page(request: Request, name: str) -> Response:
    """One study: stages, curves, leaderboard and champion, and what can be done with it."""
    home = studies_for(request)
    summary = study_content(home, name)
    submission = home.submission(name)
    metric = DecidingMetric.model_validate(summary["metric"])
    trials = _trained(home, name, metric)
    curves = _curves(home, trials, metric)
    rows = summary["leaderboard"] or _rows_so_far(trials, metric)
    return page_response(
        request,
        "study.html",
        summary=summary,
        metric=metric,
        stages=[{**stage, "line": _line(stage)} for stage in summary["stages"]],
        board=_board(rows, metric, champion=(summary["champion"] or {}).get("trial")),
        picture=curve_picture(curves, metric) if curves else None,
        is_live=summary["state"] in ("running", "waiting"),
        has_begun=summary["num_executions"] > 0,
        server=str(request.base_url).rstrip("/"),
        submission=submission,
        can_change=submission is not None and caller_of(request).may_change(submission.owner),
        has_mlflow=request.app.state.mlflow_url is not None and home.settings.tracking,
    )


@router.get("/studies/{name}/report")
def show_report(request: Request, name: str) -> Response:
    """The report on a study, which is one page for reading and printing."""
    from orchestrator.study.report import html_report

    home = studies_for(request)
    study = home.study(name)
    if not _report_places.acquire(blocking=False):
        raise RequestError(
            503,
            "too-many-reports",
            f"at most {MAX_REPORTS} reports can be drawn at a time, but there are as many. Try again later.",
            headers={"Retry-After": "10"},
        )
    try:
        with _drawing:
            text = html_report(study.name, home.settings)
    finally:
        _report_places.release()
    return HTMLResponse(text, headers={"Content-Security-Policy": _REPORT_POLICY})


@router.get("/studies/{name}/mlflow")
def open_in_mlflow(request: Request, name: str) -> Response:
    """Leads to the page of a study in MLflow."""
    from orchestrator.study.tracking_access import study_page

    home, mlflow_url = studies_for(request), request.app.state.mlflow_url
    study = home.study(name)
    if mlflow_url is None or not home.settings.tracking:
        raise RequestError(
            404, "not-in-mlflow", "this service must show MLflow to lead there, but does not. Start it with --mlflow."
        )
    page = study_page(study, home.settings, server_url=mlflow_url)
    if page is None:
        raise RequestError(404, "not-in-mlflow", f"study {name!r} must be in MLflow, but is not yet. Try again later.")
    return RedirectResponse(page, status_code=303)


def _trained(home: VisibleStudies, name: str, metric: DecidingMetric) -> list[TrialRecord]:
    """The best and the newest running trials of the last training stage that has begun."""
    try:
        study = home.study(name)
    except UnknownStudyError:  # it waits for its turn
        return []
    begun = [one for one in home.store.stages(study.id) if one.kind == "train" and one.state != "waiting"]
    if not begun:
        return []
    pages = home.store.pages()
    stage_id, is_highest = begun[-1].id, metric.direction == "maximize"
    best = pages.best_trials(stage_id, metric.key, is_highest=is_highest, limit=_MAX_ROWS)
    return pages.trials_by_id([*best, *pages.running_trials(stage_id, limit=_MAX_CURVES)])


def _best_first(trials: Sequence[TrialRecord], metric: DecidingMetric) -> list[TrialRecord]:
    """The trials that have a result."""
    ended = [trial for trial in trials if trial.is_usable and metric.key in trial.metrics]
    return sorted(ended, key=lambda trial: -metric.score(trial.metrics[metric.key]))


def _curves(
    home: VisibleStudies, trials: Sequence[TrialRecord], metric: DecidingMetric
) -> dict[str, list[tuple[int, float]]]:
    """The validation curves of running trainings and of the best ones."""
    running = [trial for trial in trials if trial.state == "running"]
    chosen = (running[-_MAX_CURVES // 2 :] + _best_first(trials, metric))[:_MAX_CURVES]
    curves = {}
    for trial in sorted(chosen, key=lambda trial: trial.number):
        reports = home.store.reports(trial.id)
        points = [(report.epoch, report.value(metric)) for report in reports if metric.key in _recorded(report)]
        finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        if finite:
            curves[f"trial {trial.number}"] = finite
    return curves


def _rows_so_far(trials: Sequence[TrialRecord], metric: DecidingMetric) -> list[dict[str, Any]]:
    """Rows like those of a leaderboard, while the stage runs."""
    return [
        {**trial.metrics, **trial.point, "trial": trial.number, "topology": trial.topology}
        for trial in _best_first(trials, metric)[:_MAX_ROWS]
    ]


def _recorded(report: Any) -> set[str]:
    return {"val_loss", "val_accuracy", *report.metrics}


def _line(stage: Mapping[str, Any]) -> str:
    """What a stage found, in a few words."""
    if stage["reason"]:
        return str(stage["reason"])
    kind = stage_kind(stage["kind"])
    return kind.line(kind.result.model_validate(stage["result"])) if stage["result"] else ""


def _board(rows: Sequence[Mapping[str, Any]], metric: DecidingMetric, *, champion: int | None) -> list[dict[str, Any]]:
    """Rows of the leaderboard as texts."""
    differing = _differing(rows)
    return [
        {
            "trial": row["trial"],
            "is_champion": row["trial"] == champion,
            "value": metric.text(row[metric.key]) if metric.key in row else "–",
            "parameters": f"{row['parameters']:,.0f}" if "parameters" in row else "–",
            "time": duration_text(row.get("wall_time_s")),
            "topology": row["topology"],
            "recipe": ", ".join(_recipe(row, differing)),
        }
        for row in rows
    ]


def _differing(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Sampled values of the recipe that differ between rows."""
    return {key for row in rows for key in row if len({repr(other.get(key)) for other in rows}) > 1}


def _recipe(row: Mapping[str, Any], shown: Collection[str]) -> list[str]:
    sampled = ((key.removeprefix("recipe."), row[key]) for key in row if key.startswith("recipe.") and key in shown)
    return [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in sampled]
