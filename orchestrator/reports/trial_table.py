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
        trials = store.trials(stage.id)
        times_s = store.trial_times_s([trial.id for trial in trials if trial.ended_at is not None])
        for trial in trials:
            is_alive = study.state == "running"
            yield trial_row(stage.name, trial, is_alive=is_alive, wall_time_s=times_s.get(trial.id))


def trial_row(stage: str, trial: TrialRecord, *, is_alive: bool, wall_time_s: float | None) -> dict[str, Any]:
    """One trial as a row.

    Args:
        stage: Name of its stage.
        trial: The trial.
        is_alive: Whether the study is running. Otherwise a trial that its row calls running waits to be resumed.
        wall_time_s: Seconds that it ran, without pauses, once it has ended.
    """
    row: dict[str, Any] = {
        "stage": stage,
        "trial": trial.number,
        "state": "waiting" if trial.state == "running" and not is_alive else trial.state,
        "topology": trial.topology,
        "reason": trial.reason,
        "trial_seed": trial.seed,
        "started_at": trial.started_at,
        "wall_time_s": wall_time_s,
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
