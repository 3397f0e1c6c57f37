"""The scores of training-free proxies, shared by all studies."""

import time
from collections.abc import Sequence

from sqlalchemy import Engine, select

from orchestrator.store.reading import reading
from orchestrator.store.records import ScoreKey, ScoreRecord
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.tables import proxy_scores
from orchestrator.store.upserts import insert_into


@retry_on_outage
class ScoreTable:
    """Reads and writes scores, by everything that they depend on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, topology: str, data: str, seed: int) -> dict[ScoreKey, ScoreRecord]:
        """All known scores of a topology for a batch and a seed, including other settings and older code."""
        table = proxy_scores.c
        given = (table.topology == topology, table.data == data, table.seed == seed)
        columns = (table.proxy, table.settings, table.code, table.value, table.spread, table.reason, table.wall_time_s)
        with reading(self._engine) as connection:
            return {
                ScoreKey(row.proxy, row.settings, row.code): ScoreRecord(
                    value=row.value, spread=row.spread, reason=row.reason, wall_time_s=row.wall_time_s
                )
                for row in connection.execute(select(*columns).where(*given))
            }

    def add(self, topology: str, data: str, seed: int, scores: Sequence[tuple[ScoreKey, ScoreRecord]]) -> None:
        """Write scores in one transaction. A score that another process has written meanwhile is kept."""
        now = time.time()
        rows = [
            {
                "topology": topology,
                "data": data,
                "seed": seed,
                **key._asdict(),
                **record.model_dump(),
                "created_at": now,
            }
            for key, record in scores
        ]
        if not rows:
            return
        with self._engine.begin() as connection:
            connection.execute(insert_into(proxy_scores, connection).on_conflict_do_nothing(), rows)
