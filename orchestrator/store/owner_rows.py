"""Owners, and the device time that they used. What was used long ago counts less."""

import math
from typing import NamedTuple

from sqlalchemy import Connection, Engine, func, select, update

from orchestrator.store.database_time import read_time
from orchestrator.store.reading import reading
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.tables import owners, submissions
from orchestrator.store.upserts import insert_into

HALF_LIFE_S = 7 * 86_400.0
"""After this time, used device time counts half."""
ADVANCE_S = 60.0
"""Device time that a running study counts in advance, so that an owner without any does not take all places at once."""


class OwnerRecord(NamedTuple):
    """An owner in the queue."""

    name: str
    weight: float
    """With 2, an owner gets twice as much device time as with 1 while both have studies that wait."""
    used_s: float
    """Device time that counts now."""


@retry_on_outage
class OwnerTable:
    """Reads owners and sets their weights."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def all(self) -> list[OwnerRecord]:
        """All owners who ran studies, or whose weight was set, by name."""
        with reading(self._engine) as connection:
            now = read_time(connection)
            rows = connection.execute(select(owners).order_by(owners.c.name))
            return [OwnerRecord(row.name, row.weight, faded(row.used_s, now - row.used_at)) for row in rows]

    def set_weight(self, name: str, weight: float) -> None:
        """Set the weight of an owner, also of one who has run nothing yet."""
        with self._engine.begin() as connection:
            now = read_time(connection)
            new = {"name": name, "weight": weight, "used_s": 0.0, "used_at": now, "created_at": now}
            statement = insert_into(owners, connection).values(**new)
            connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"weight": weight}))


def faded(used_s: float, age_s: float) -> float:
    """The part of used device time that still counts after some time."""
    return used_s * math.exp2(-max(age_s, 0.0) / HALF_LIFE_S)


def charge(connection: Connection, owner: str, spent_s: float, now: float) -> None:
    """Add device time to what an owner has used."""
    found = select(owners.c.used_s, owners.c.used_at).where(owners.c.name == owner).with_for_update()
    row = connection.execute(found).one_or_none()
    if row is None:
        new = {"name": owner, "weight": 1.0, "used_s": 0.0, "used_at": now, "created_at": now}
        connection.execute(insert_into(owners, connection).values(**new).on_conflict_do_nothing())
        row = connection.execute(found).one()
    used_s = faded(row.used_s, now - row.used_at) + spent_s
    connection.execute(update(owners).where(owners.c.name == owner).values(used_s=used_s, used_at=now))


def owners_in_turn(connection: Connection, now: float) -> list[str]:
    """Owners with waiting submissions; first the one that has used least, relative to its weight."""
    waiting = select(submissions.c.owner, func.min(submissions.c.id).label("first"))
    waiting = waiting.where(submissions.c.state == "waiting").group_by(submissions.c.owner)
    first = {row.owner: row.first for row in connection.execute(waiting)}
    running = select(submissions.c.owner, func.count().label("number")).where(submissions.c.state == "running")
    number: dict[str, int] = {
        row.owner: row.number for row in connection.execute(running.group_by(submissions.c.owner))
    }
    known = {row.name: row for row in connection.execute(select(owners).where(owners.c.name.in_(first)))}

    def used_s(owner: str) -> float:
        row = known.get(owner)
        before: float = 0.0 if row is None else faded(row.used_s, now - row.used_at)
        weight = 1.0 if row is None else float(row.weight)
        return (before + ADVANCE_S * number.get(owner, 0)) / weight

    return sorted(first, key=lambda owner: (used_s(owner), first[owner]))
