"""MLflow's pages: the state of its table of runs, its addresses, and links between them. Nothing here calls MLflow."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from orchestrator.tracking.events import ShareView
from orchestrator.tracking.names import REPORT_FILE, clean_name

TRIALS_VIEW = "trials"
"""Name of the experiment's view that compares trained trials."""
ALL_VIEW = "all"
"""Name of the view that shows executions, stages and trials as a tree."""
DIFFERENCES = "differences=parameters"
"""Part of an address: `orchestrator.tracking.web_pages` then shows only the parameters that differ between runs."""
VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the experiment's tags that hold its saved views."""
_ALWAYS_SHOWN = ("attributes.`Run Name`", "runDateAndNestInfo", "duration")
"""Ids of the columns that MLflow always shows, in front of all others."""
_WIDTHS = {"attributes.`Run Name`": 210, "attributes.`Description`": 420}
_PIXELS_PER_LETTER, _PADDING, _NARROWEST, _WIDEST = 7, 34, 84, 260
_ARTIFACTS = {"run": None, "plots": "plots", "report": REPORT_FILE}
"""What a link to a run opens, by its kind."""
_LINK = re.compile(r"\[([^\]]*)\]\((run|plots|report|view|model):([^)\s]+)\)")


def column(name: str) -> str:
    """A column such as `metrics.val_accuracy`, as MLflow's page writes it."""
    group, _, column = name.partition(".")
    return f"{group}.`{clean_name(column)}`"


def view_state(view: ShareView) -> dict[str, Any]:
    """What MLflow's page remembers of its table of runs: columns with their order and widths, filter and sorting."""
    columns = [column(name) for name in view.columns]
    shown = [*_ALWAYS_SHOWN, *columns]
    return {
        "selectedColumns": columns,
        "columnOrder": shown,
        "columnWidths": {one: _width(one) for one in shown if one in _WIDTHS or one in columns},
        "searchFilter": view.filter,
        "orderByKey": "attributes.start_time" if view.order_by is None else column(view.order_by),
        "orderByAsc": not view.descending,
    }


def saved_view(view: ShareView) -> str:
    """The value of a view's tag. With a title, MLflow lists the view in its menu "Views"."""
    state = json.dumps(view_state(view))
    if not view.title:
        return state
    return json.dumps({"name": view.title, "createdAt": view.created_ms, "updatedAt": view.created_ms, "state": state})


def state_of_saved_view(text: str) -> dict[str, Any]:
    """The state in a view's tag, with or without a title; empty if the tag has another form."""
    try:
        found = json.loads(text)
        if isinstance(found, dict) and isinstance(found.get("state"), str):
            found = json.loads(found["state"])
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def runs_path(experiment_id: str, *, view: str | None = None) -> str:
    """The part of the address of an experiment's runs after the server's."""
    # Without the workflow MLflow opens its pages on language models.
    query = "workflowType=machine_learning" + (f"&viewStateShareKey={view}" if view else "")
    return f"#/experiments/{experiment_id}/runs?{query}"


def run_path(experiment_id: str, run_id: str, *, artifact: str | None = None) -> str:
    """The part of the address of a run, or of one of its files, after the server's."""
    tail = "" if artifact is None else f"/artifacts/{quote(artifact)}"
    return f"#/experiments/{experiment_id}/runs/{run_id}{tail}"


def compare_path(experiment_id: str, run_ids: Iterable[str]) -> str:
    """The part of the address of the page that compares runs after the server's."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    return f"#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment_id]))}&{DIFFERENCES}"


def with_links(text: str, experiment_id: str, run_id_of: Callable[[str], str | None], views: Mapping[str, Any]) -> str:
    """Replace the links of a `DescribeExperiment` by addresses in MLflow.

    Args:
        text: Markdown.
        experiment_id: MLflow's id of the experiment.
        run_id_of: MLflow's id of the run with one of our keys, or `None`.
        views: The experiment's tags.
    """

    def address(match: re.Match[str]) -> str:
        shown, kind, target = match.groups()
        found: str | None = None
        if kind == "view" and f"{VIEW_TAG}{target}" in views:
            found = runs_path(experiment_id, view=target)
        elif kind == "model":
            found = f"#/models/{quote(target)}"
        elif kind in _ARTIFACTS:
            run_id = run_id_of(target)
            found = run_id and run_path(experiment_id, run_id, artifact=_ARTIFACTS[kind])
        return f"[{shown}]({found})" if found else shown

    return _LINK.sub(address, text)


def _width(name: str) -> int:
    """Pixels of a column that shows its whole head."""
    known = _WIDTHS.get(name)
    head = name.partition(".")[2].strip("`")
    return known or min(_WIDEST, max(_NARROWEST, _PADDING + _PIXELS_PER_LETTER * len(head)))
