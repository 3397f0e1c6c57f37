"""Events of one study that wait for MLflow, and MLflow's run ids of our keys."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, insert, select, update

from orchestrator.safe_text import without_secrets
from orchestrator.store.reading import reading
from orchestrator.store.retrying import retry_on_outage
from orchestrator.store.tables import outbox, studies, tracked_runs


@retry_on_outage
class StudyOutbox:
    """Implements `OutboxStore` and `RunIds` of `orchestrator.tracking` for one study."""

    def __init__(self, engine: Engine, study_id: int) -> None:
        self._engine = engine
        self._study_id = study_id

    # --- waiting events ---

    def owed(self, limit: int) -> list[tuple[int, str]]:
        """Ids and JSON of the oldest waiting events."""
        with reading(self._engine) as connection:
            found = connection.execute(
                select(outbox.c.id, outbox.c.event).where(*self._is_owed()).order_by(outbox.c.id).limit(limit)
            )
            return [(row.id, row.event) for row in found]

    def settle(self, ids: Sequence[int]) -> None:
        """Mark events as delivered."""
        self._update(outbox.c.id.in_(ids), delivered_at=time.time(), error=None)

    def postpone(self, event_id: int, error: str) -> None:
        """Note that an event could not be delivered now."""
        self._update(outbox.c.id == event_id, num_tries=outbox.c.num_tries + 1, error=without_secrets(error))

    def reject(self, event_id: int, error: str) -> None:
        """Note that MLflow will never accept an event."""
        self._update(outbox.c.id == event_id, rejected=1, error=without_secrets(error))

    def count_owed(self) -> int:
        with reading(self._engine) as connection:
            return connection.execute(select(func.count()).select_from(outbox).where(*self._is_owed())).scalar_one()

    def count_rejected(self) -> int:
        with reading(self._engine) as connection:
            return connection.execute(select(func.count()).select_from(outbox).where(*self._is_rejected())).scalar_one()

    def rejection(self) -> str | None:
        """Why MLflow rejected the first of the rejected events; `None` if there is none."""
        with reading(self._engine) as connection:
            found: str | None = connection.execute(
                select(outbox.c.error).where(*self._is_rejected()).order_by(outbox.c.id).limit(1)
            ).scalar()
            return found

    def start_over(self) -> int:
        """Let all events of the study wait again, and forget MLflow's run ids of its keys."""
        with self._engine.begin() as connection:
            connection.execute(delete(tracked_runs).where(self._is_ours(connection)))
            of_study = outbox.c.study_id == self._study_id
            waiting = {"delivered_at": None, "rejected": 0, "num_tries": 0, "error": None}
            connection.execute(update(outbox).where(of_study).values(**waiting))
            return connection.execute(select(func.count()).select_from(outbox).where(of_study)).scalar_one()

    # --- run ids ---

    def expects_runs(self) -> bool:
        """Whether runs of the study were delivered to MLflow."""
        with reading(self._engine) as connection:
            found = select(tracked_runs.c.key).where(self._is_ours(connection)).limit(1)
            return connection.execute(found).first() is not None

    def get(self, key: str) -> str | None:
        """MLflow's run id of one of our keys."""
        with reading(self._engine) as connection:
            found: str | None = connection.execute(
                select(tracked_runs.c.run_id).where(tracked_runs.c.key == key)
            ).scalar()
            return found

    def put(self, key: str, run_id: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(tracked_runs).where(tracked_runs.c.key == key))
            connection.execute(insert(tracked_runs).values(key=key, run_id=run_id))

    def forget(self, key: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(tracked_runs).where(tracked_runs.c.key == key))

    def run_ids(self) -> list[str]:
        """MLflow's run ids of all keys of the study."""
        with reading(self._engine) as connection:
            return list(connection.execute(select(tracked_runs.c.run_id).where(self._is_ours(connection))).scalars())

    def _is_ours(self, connection: Connection) -> ColumnElement[bool]:
        """The condition for rows of `tracked_runs` that belong to this study."""
        uid = connection.execute(select(studies.c.uid).where(studies.c.id == self._study_id)).scalar_one()
        return tracked_runs.c.key.startswith(f"{uid}/", autoescape=True)

    def _is_owed(self) -> tuple[Any, ...]:
        return outbox.c.study_id == self._study_id, outbox.c.delivered_at.is_(None), outbox.c.rejected == 0

    def _is_rejected(self) -> tuple[Any, ...]:
        return outbox.c.study_id == self._study_id, outbox.c.delivered_at.is_(None), outbox.c.rejected == 1

    def _update(self, condition: Any, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(outbox).where(condition).values(**values))
