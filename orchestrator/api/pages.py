"""The pages for people. They are rendered here, work without scripts, and load nothing from other machines."""

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from orchestrator.api.auth import caller_of
from orchestrator.api.curves import curve_picture
from orchestrator.api.errors import RequestError
from orchestrator.api.rendering import duration_text, page_response
from orchestrator.api.routes.checking import EXAMPLE
from orchestrator.api.routes.studies import studies_for, study_content
from orchestrator.stages.kind import stage_kind
from orchestrator.study.access import UnknownStudyError
from plugins.metrics.deciding import DecidingMetric

router = APIRouter(include_in_schema=False, dependencies=[Depends(caller_of)])

_PER_PAGE = 50
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"
)
"""The report contains its style and its script. What people wrote is escaped in it."""
_drawing = threading.Lock()  # matplotlib draws in one thread at a time
_MAX_CURVES = 8
_STATES = ("running", "waiting", "complete", "interrupted", "failed")


@router.get("/")
def start_page(
    request: Request, state: str | None = None, text: str | None = None, after: str | None = None
) -> Response:
    """The studies, and a place to drop a study file."""
    chosen = state if state in _STATES else None
    before = int(after) if after and after.isascii() and after.isdigit() and len(after) < 19 else None
    rows, more = studies_for(request).lines(
        state=chosen, owner=None, text=(text or "")[:63] or None, before=before, limit=_PER_PAGE
    )
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
    curves = _curves(request, name, metric)
    return page_response(
        request,
        "study.html",
        summary=summary,
        metric=metric,
        stages=[{**stage, "line": _line(stage)} for stage in summary["stages"]],
        board=_board(summary, metric),
        picture=curve_picture(curves, metric) if curves else None,
        is_live=summary["state"] in ("running", "waiting"),
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
    with _drawing:
        text = html_report(study.name, home.settings)
    return HTMLResponse(text, headers={"Content-Security-Policy": _REPORT_POLICY})


@router.get("/studies/{name}/mlflow")
def open_in_mlflow(request: Request, name: str) -> Response:
    """Leads to the page of a study in MLflow."""
    from orchestrator.study.tracking_access import study_page

    home = studies_for(request)
    page = study_page(home.study(name), home.settings, server_url=request.app.state.mlflow_url)
    if page is None:
        raise RequestError(404, "not-in-mlflow", f"study {name!r} must be in MLflow, but is not yet. Try again later.")
    return RedirectResponse(page, status_code=303)


def _curves(request: Request, name: str, metric: DecidingMetric) -> dict[str, list[tuple[int, float]]]:
    """The validation curves of the best and the newest trainings of a study."""
    home = studies_for(request)
    try:
        study = home.study(name)
    except UnknownStudyError:  # it waits for its turn
        return {}
    trained = [stage for stage in home.store.stages(study.id) if stage.kind == "train" and stage.state != "waiting"]
    if not trained:
        return {}
    trials = home.store.trials(trained[-1].id)
    running = [trial for trial in trials if trial.state == "running"]
    ended = sorted(
        (trial for trial in trials if metric.key in trial.metrics),
        key=lambda trial: -metric.score(trial.metrics[metric.key]),
    )
    chosen = (running[-_MAX_CURVES // 2 :] + ended)[:_MAX_CURVES]
    curves = {}
    for trial in sorted(chosen, key=lambda trial: trial.number):
        reports = home.store.reports(trial.id)
        points = [(report.epoch, report.value(metric)) for report in reports if metric.key in _recorded(report)]
        if points:
            curves[f"trial {trial.number}"] = points
    return curves


def _recorded(report: Any) -> set[str]:
    return {"val_loss", "val_accuracy", *report.metrics}


def _line(stage: Mapping[str, Any]) -> str:
    """What a stage found, in a few words."""
    if stage["reason"]:
        return str(stage["reason"])
    kind = stage_kind(stage["kind"])
    return kind.line(kind.result.model_validate(stage["result"])) if stage["result"] else ""


def _board(summary: Mapping[str, Any], metric: DecidingMetric) -> list[dict[str, Any]]:
    """Rows of the leaderboard as texts."""
    champion = (summary["champion"] or {}).get("trial")
    differing = _differing(summary["leaderboard"])
    return [
        {
            "trial": row["trial"],
            "is_champion": row["trial"] == champion,
            "value": metric.text(row.get(metric.key, row.get("val_accuracy", 0.0))),
            "parameters": f"{row['parameters']:,.0f}",
            "macs": f"{row['macs']:,.0f}" if row.get("macs") else "–",
            "time": duration_text(row["wall_time_s"]),
            "topology": row["topology"],
            "recipe": ", ".join(_recipe(row, differing)),
        }
        for row in summary["leaderboard"]
    ]


def _differing(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Sampled values of the recipe that differ between rows."""
    return {key for row in rows for key in row if len({repr(other.get(key)) for other in rows}) > 1}


def _recipe(row: Mapping[str, Any], shown: Collection[str]) -> list[str]:
    sampled = ((key.removeprefix("recipe."), row[key]) for key in row if key.startswith("recipe.") and key in shown)
    return [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in sampled]
