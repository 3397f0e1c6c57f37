"""Reads studies and trials in pages, for lists that may be long."""

import math
import sys
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Engine, case, exists, func, or_, select, union, union_all

from orchestrator.store.reading import reading
from orchestrator.store.records import USABLE, StageRecord, StudyRecord, TrialRecord
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.study_names import SEPARATOR, home_owner
from orchestrator.store.tables import OPEN_TRIALS, reports, stages, studies, submissions, tracked_runs, trials
from trainers.config import EpochReport

_LARGEST = sys.float_info.max


@retry_on_outage
class StudyPages:
    """Pages of rows, and counts of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def studies(
        self,
        *,
        states: Collection[str] | None = None,
        or_submitted: Collection[str] = (),
        owner: str | None = None,
        text: str | None = None,
        seen_by: str | None = None,
        before: int | None = None,
        limit: int,
    ) -> list[StudyRecord]:
        """Studies, newest first.

        Args:
            states: Only studies whose rows have one of these states.
            or_submitted: With `states`, also those with a submission in one of these states.
            owner: Only studies of this owner.
            text: Only studies whose names contain this text.
            seen_by: Only those of this owner, and shared ones.
            before: Only studies that are older than the one with this id.
            limit: Largest number of studies.
        """
        query = select(studies).order_by(studies.c.id.desc()).limit(limit)
        if states is not None:
            submitted = exists().where(submissions.c.name == studies.c.name, submissions.c.state.in_(or_submitted))
            in_state = studies.c.state.in_(states)
            query = query.where(or_(in_state, submitted) if or_submitted else in_state)
        if owner is not None:
            query = query.where(studies.c.owner == owner)
        if text is not None:
            query = query.where(studies.c.name.contains(text, autoescape=True))
        if seen_by is not None:
            query = query.where(_is_seen_by(seen_by))
        if before is not None:
            query = query.where(studies.c.id < before)
        with reading(self._engine) as connection:
            return [StudyRecord.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def study_names(self, *, seen_by: str | None = None, limit: int) -> list[str]:
        """Names of the newest studies; with `seen_by`, of those of this owner and shared ones."""
        query = select(studies.c.name).order_by(studies.c.id.desc()).limit(limit)
        if seen_by is not None:
            query = query.where(_is_seen_by(seen_by))
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def study_counts(self) -> dict[str, int]:
        """Number of studies in each state, as their rows say."""
        query = select(studies.c.state, func.count()).group_by(studies.c.state)
        with reading(self._engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def stages(self, study_ids: Collection[int]) -> dict[int, list[StageRecord]]:
        """The stages of studies in order, by the id of the study."""
        query = select(stages).where(stages.c.study_id.in_(study_ids)).order_by(stages.c.position)
        found: dict[int, list[StageRecord]] = {study_id: [] for study_id in study_ids}
        with reading(self._engine) as connection:
            for row in connection.execute(query).mappings():
                found[row["study_id"]].append(StageRecord.model_validate(dict(row)))
        return found

    def run_ids(self) -> dict[str, list[str]]:
        """MLflow's run ids of all studies, by the `uid` of the study."""
        found: dict[str, list[str]] = {}
        with reading(self._engine) as connection:
            for key, run_id in connection.execute(select(tracked_runs.c.key, tracked_runs.c.run_id)):
                found.setdefault(key.partition("/")[0], []).append(run_id)
        return found

    def trial_counts(self, *study_ids: int) -> dict[int, dict[str, int]]:
        """Number of trials of studies in each state, by the id of their stage."""
        query = (
            select(trials.c.stage_id, trials.c.state, func.count())
            .join(stages, stages.c.id == trials.c.stage_id)
            .where(stages.c.study_id.in_(study_ids))
            .group_by(trials.c.stage_id, trials.c.state)
        )
        found: dict[int, dict[str, int]] = {}
        with reading(self._engine) as connection:
            for stage_id, state, count in connection.execute(query):
                found.setdefault(stage_id, {})[state] = count
        return found

    def trials(
        self, stage_ids: Collection[int], *, states: Collection[str] | None = None, after: int = 0, limit: int
    ) -> list[TrialRecord]:
        """Trials of some stages in the order in which they began.

        Args:
            stage_ids: The stages.
            states: Only trials whose rows have one of these states.
            after: Only trials that began after the one with this id.
            limit: Largest number of trials.
        """
        query = select(trials).where(trials.c.stage_id.in_(stage_ids), trials.c.id > after)
        if states is not None:
            query = query.where(trials.c.state.in_(states))
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(trials.c.id).limit(limit)).mappings()
            return [TrialRecord.model_validate(dict(row)) for row in rows]

    def best_trials(self, stage_id: int, key: str, *, is_highest: bool, limit: int) -> list[int]:
        """Ids of the best trials of a stage that have a value of a metric, the best first.

        Of equal trials, the first one is better. Trials whose value is not finite come last.

        Args:
            stage_id: The stage.
            key: Key of the metric, such as `val_accuracy`.
            is_highest: Whether the highest value is the best.
            limit: The largest number of trials.
        """
        value = trials.c.metrics[key].as_float()
        sign = 1 if is_highest else -1
        ended = (trials.c.stage_id == stage_id) & trials.c.state.in_(USABLE)
        columns = (trials.c.id, trials.c.number, trials.c.metrics)
        with reading(self._engine) as connection:
            unreadable: list[Any] = []
            if connection.dialect.name == "sqlite":
                is_json, value = _readable_json(value)
                unreadable = list(connection.execute(select(*columns).where(ended, is_json == 0)))
            is_finite = value.between(-_LARGEST, _LARGEST)
            order = value.desc() if is_highest else value
            finite = connection.execute(
                select(*columns).where(ended, is_finite).order_by(order, trials.c.number).limit(limit)
            )
            found = [*finite, *unreadable]
            if len(found) < limit:
                others = select(*columns).where(ended, trials.c.id.not_in([row.id for row in found]))
                found += connection.execute(others)

        def place(row: Any) -> tuple[float, int]:
            one = float(row.metrics[key])  # PostgreSQL has no NaN in JSON: it is stored as a text
            return (-sign * one if math.isfinite(one) else math.inf), row.number

        return [row.id for row in sorted((row for row in found if key in row.metrics), key=place)[:limit]]

    def running_trials(self, stage_id: int, *, limit: int) -> list[int]:
        """Ids of the newest running trials of a stage."""
        query = select(trials.c.id).where(trials.c.stage_id == stage_id, OPEN_TRIALS, trials.c.state == "running")
        with reading(self._engine) as connection:
            return list(connection.execute(query.order_by(trials.c.number.desc()).limit(limit)).scalars())

    def best_values(self, stage_ids: Collection[int], key: str, *, is_highest: bool) -> dict[int, float]:
        """The highest or lowest finite value of a metric among the trials of stages, by the id of the stage.

        Args:
            stage_ids: The stages. Those without a value are left out.
            key: Key of the metric, such as `val_accuracy`.
            is_highest: Whether the highest value is the best.
        """
        if not stage_ids:
            return {}
        best = max if is_highest else min
        value = trials.c.metrics[key].as_float()
        of_stages = trials.c.stage_id.in_(stage_ids)
        with reading(self._engine) as connection:
            unreadable: list[tuple[int, float]] = []
            if connection.dialect.name == "sqlite":
                is_json, value = _readable_json(value)
                others = select(trials.c.stage_id, trials.c.metrics).where(of_stages, is_json == 0)
                unreadable = [(row.stage_id, row.metrics.get(key)) for row in connection.execute(others)]
            extreme = func.max(value) if is_highest else func.min(value)
            query = select(trials.c.stage_id, extreme).where(of_stages, value.between(-_LARGEST, _LARGEST))
            found = [*map(tuple, connection.execute(query.group_by(trials.c.stage_id))), *unreadable]
        values: dict[int, float] = {}
        for stage_id, one in found:
            if one is not None and math.isfinite(one):
                values[stage_id] = best(values.get(stage_id, one), one)
        return values

    def newest_times(self, stage_ids: Collection[int]) -> dict[int, float]:
        """When a trial of stages last began, reported or ended, by the id of the stage; those without are left out."""
        if not stage_ids:
            return {}
        of_stages = trials.c.stage_id.in_(stage_ids)
        ended = func.coalesce(trials.c.ended_at, trials.c.started_at)
        query = union_all(
            select(trials.c.stage_id, func.max(ended)).where(of_stages).group_by(trials.c.stage_id),
            select(trials.c.stage_id, func.max(reports.c.reported_at))
            .join(reports, reports.c.trial_id == trials.c.id)
            .where(of_stages, OPEN_TRIALS)
            .group_by(trials.c.stage_id),
        )
        found: dict[int, float] = {}
        with reading(self._engine) as connection:
            for stage_id, at in connection.execute(query):
                found[stage_id] = max(at, found.get(stage_id, at))
        return found

    def trials_by_id(self, ids: Collection[int]) -> list[TrialRecord]:
        """Trials with these ids, by number."""
        query = select(trials).where(trials.c.id.in_(ids)).order_by(trials.c.number)
        with reading(self._engine) as connection:
            return [TrialRecord.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def trial(self, stage_id: int, number: int) -> TrialRecord | None:
        """One trial of a stage, or `None`."""
        query = select(trials).where(trials.c.stage_id == stage_id, trials.c.number == number)
        with reading(self._engine) as connection:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else TrialRecord.model_validate(dict(row))

    def open_trials(self, study_id: int, *, after: int, known: Collection[int], limit: int) -> list[dict[str, Any]]:
        """Trials of a study that began after another one, that are not finished, or that are known by their ids.

        Returns:
            For each trial, in the order in which they began: its `id`, `number`, `state` and `reason`, and the name of
            its `stage`.
        """
        columns = (trials.c.id, trials.c.number, trials.c.state, trials.c.reason, stages.c.name.label("stage"))
        of_study = select(*columns).join(stages, stages.c.id == trials.c.stage_id).where(stages.c.study_id == study_id)
        # Each of the three has an index; a single condition for all of them would read all trials of the study.
        newer = of_study.where(trials.c.id > after).order_by(trials.c.id).limit(limit).subquery()
        not_finished = of_study.where(OPEN_TRIALS)
        query = union(select(newer), not_finished, of_study.where(trials.c.id.in_(known))).order_by("id").limit(limit)
        with reading(self._engine) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def curves(self, trial_ids: Collection[int]) -> dict[int, list[EpochReport]]:
        """The learning curves of trials by their ids, in one query."""
        query = select(reports.c.trial_id, reports.c["values"]).where(reports.c.trial_id.in_(trial_ids))
        found: dict[int, list[EpochReport]] = {trial_id: [] for trial_id in trial_ids}
        with reading(self._engine) as connection:
            for trial_id, values in connection.execute(query.order_by(reports.c.trial_id, reports.c.epoch)):
                found[trial_id].append(EpochReport.model_validate(values))
        return found

    def reports_after(self, trial_id: int, epoch: int) -> list[EpochReport]:
        """The learning curve of a trial after an epoch."""
        query = select(reports.c["values"]).where(reports.c.trial_id == trial_id, reports.c.epoch > epoch)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(reports.c.epoch)).scalars()
            return [EpochReport.model_validate(values) for values in rows]


def _is_seen_by(owner: str) -> ColumnElement[bool]:
    name = studies.c.name
    is_own = name.startswith(f"{owner}{SEPARATOR}", autoescape=True)
    if owner == home_owner():
        is_own = ~name.contains(SEPARATOR, autoescape=True)
    return or_(is_own, exists().where(submissions.c.name == name, submissions.c.shared))


def _readable_json(value: ColumnElement[float]) -> tuple[ColumnElement[int], ColumnElement[float]]:
    """Whether SQLite can read the metrics of a trial, and a value in them if it can.

    It keeps NaN as Python writes it, which is not JSON.
    """
    is_json = func.json_valid(trials.c.metrics)
    return is_json, case((is_json == 1, value))
