"""Writes the growth of a study: its new file, its stages, and the trials that run again, in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from orchestrator.store.tables import reports, stages, studies, trials
from search_spaces.dimensions import Point


class GrowthRows(NamedTuple):
    """What changes in the rows of a study that grows."""

    spec: Mapping[str, Any]
    spec_digest: str
    data_digest: str
    stage_names: Sequence[tuple[str, str]]
    """Name and kind of each stage of the new file, in order."""
    extended: frozenset[str]
    """Stages that keep their trials and continue."""
    repeated: frozenset[str]
    """Stages whose trials are deleted."""
    rerun: Mapping[str, Sequence[int]]
    """Numbers of the trials that run again, by stage."""
    filled: Mapping[str, Point]
    """Values to add to the points of all trials of a stage."""


def write_growth(connection: Connection, study_id: int, growth: GrowthRows, now: float) -> None:
    """Write a growth in the caller's transaction. Results of stages are kept until the stages end again."""
    connection.execute(
        update(studies)
        .where(studies.c.id == study_id)
        .values(spec=dict(growth.spec), spec_digest=growth.spec_digest, data_digest=growth.data_digest, updated_at=now)
    )
    known = _place_stages(connection, study_id, growth.stage_names)
    for name in growth.extended | growth.repeated:
        values = {"state": "waiting", "reason": None, "started_at": None, "ended_at": None}
        connection.execute(update(stages).where(stages.c.id == known[name]).values(**values))
    for name in growth.repeated:
        connection.execute(delete(trials).where(trials.c.stage_id == known[name]))
    for name, point in growth.filled.items():
        found = select(trials.c.id, trials.c.point).where(trials.c.stage_id == known[name])
        for trial_id, before in connection.execute(found).all():
            connection.execute(update(trials).where(trials.c.id == trial_id).values(point={**point, **before}))
    for name, numbers in growth.rerun.items():
        _run_again(connection, known[name], numbers, now)


def _place_stages(connection: Connection, study_id: int, stage_names: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Give each stage its place, insert further ones, and delete those that the file lacks. Returns their ids."""
    rows = connection.execute(select(stages.c.id, stages.c.name).where(stages.c.study_id == study_id)).all()
    known = {row.name: row.id for row in rows}
    gone = known.keys() - {name for name, _ in stage_names}
    connection.execute(delete(stages).where(stages.c.id.in_([known[name] for name in gone])))
    for offset in (len(rows) + len(stage_names), 0):  # first out of the way, because places are unique
        for position, (name, _) in enumerate(stage_names):
            if name in known:
                place = update(stages).where(stages.c.id == known[name]).values(position=offset + position)
                connection.execute(place)
    for position, (name, kind) in enumerate(stage_names):
        if name not in known:
            key = connection.execute(
                insert(stages).values(
                    study_id=study_id, position=position, name=name, kind=kind, state="waiting", result={}
                )
            ).inserted_primary_key
            assert key is not None
            known[name] = int(key[0])
    return known


def _run_again(connection: Connection, stage_id: int, numbers: Sequence[int], now: float) -> None:
    """Let ended trials wait for another attempt. Their checkpoints stay; the worker decides whether to use them."""
    chosen = select(trials.c.id).where(trials.c.stage_id == stage_id, trials.c.number.in_(numbers))
    ids = list(connection.execute(chosen).scalars())
    connection.execute(delete(reports).where(reports.c.trial_id.in_(ids)))
    values: dict[str, Any] = {
        "state": "waiting",
        "metrics": {},
        "details": {},
        "reason": None,
        "error": None,
        "started_at": now,
        "ended_at": None,
    }
    connection.execute(update(trials).where(trials.c.id.in_(ids)).values(**values))
