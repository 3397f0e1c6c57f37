"""The trials of a study as flat rows, for `vitsearch trials` and spreadsheets."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord
from orchestrator.store.repository import Store

FIRST_COLUMNS = ("stage", "trial", "state", "topology", "reason", "trial_seed", "started_at", "wall_time_s")
"""Columns that every row has, before its dimensions and metrics."""


def trial_rows(store: Store, study: StudyRecord, stages: Sequence[StageRecord]) -> Iterator[dict[str, Any]]:
    """A row for each trial of some stages: `FIRST_COLUMNS`, then the sampled dimensions, then the metrics."""
    for stage in stages:
        for trial in store.trials(stage.id):
            yield trial_row(stage.name, trial, is_alive=study.state == "running")


def trial_row(stage: str, trial: TrialRecord, *, is_alive: bool) -> dict[str, Any]:
    """One trial as a row.

    Args:
        stage: Name of its stage.
        trial: The trial.
        is_alive: Whether the study is running. Otherwise a trial that its row calls running waits to be resumed.
    """
    row: dict[str, Any] = {
        "stage": stage,
        "trial": trial.number,
        "state": "waiting" if trial.state == "running" and not is_alive else trial.state,
        "topology": trial.topology,
        "reason": trial.reason,
        "trial_seed": trial.seed,
        "started_at": trial.started_at,
        "wall_time_s": None if trial.ended_at is None else trial.ended_at - trial.started_at,
    }
    row |= {name: value for name, value in trial.point.items() if name != "topology"}
    return row | {f"metric.{name}" if name in row else name: value for name, value in trial.metrics.items()}


def rows_to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV text. A row without a value in some column has an empty cell there."""
    columns = dict.fromkeys([*FIRST_COLUMNS, *(name for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
