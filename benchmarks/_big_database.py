"""A database as large as that of a team after years, and the time that its pages take."""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, text
from starlette.exceptions import StarletteDeprecationWarning

from benchmarks._sleeping import report_of
from benchmarks._stages import TOPOLOGY
from orchestrator.api.app import make_service
from orchestrator.api.auth import Caller
from orchestrator.api.home import Home, VisibleStudies
from orchestrator.api.live import Cursor, StudyFollower
from orchestrator.settings import Settings
from orchestrator.store.database import connect
from orchestrator.store.repository import Store
from orchestrator.study.lock import hold_study

with warnings.catch_warnings():
    warnings.simplefilter("ignore", StarletteDeprecationWarning)
    from starlette.testclient import TestClient

LARGE = "large"
"""Name of the study with the most trials, which is running."""
_TIMES = 5
_TABLES = ("reports", "outbox", "trials", "attempts")


class Sizes(NamedTuple):
    """What to fill a database with."""

    num_reports: int
    num_studies: int
    num_large: int
    """Trials of the largest study."""
    epochs: int = 50

    @property
    def num_trials(self) -> int:
        """Trials of each other study."""
        return max((self.num_reports // self.epochs - self.num_large) // self.num_studies, 1)


def fill(store: Store, url: str, sizes: Sizes, say: Callable[[str], None]) -> None:
    """Fill an empty database; the database itself makes the rows of trials and reports."""
    for number in range(sizes.num_studies):
        _add_study(store, f"study-{number}", sizes.num_trials, is_over=True)
    _add_study(store, LARGE, sizes.num_large * 2, is_over=False)
    engine = connect(url)
    is_postgresql = engine.dialect.name == "postgresql"
    for name, statement, values in _steps(sizes, "CAST({} AS JSON)" if is_postgresql else "{}"):
        started = time.perf_counter()
        with engine.begin() as connection:
            connection.execute(text(statement), values)
        say(f"{name} inserted in {time.perf_counter() - started:.0f} s")
    if is_postgresql:  # as autovacuum does after a while
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as vacuum:
            vacuum.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def _add_study(store: Store, name: str, num_trials: int, *, is_over: bool) -> None:
    spec = {"seed": 0, "engine": "optuna", "stages": [{"stage": "train", "num_trials": num_trials}]}
    study = store.create_study(name, spec=spec, digest="d", data_digest="d", stage_names=[("train", "train")])
    execution = store.begin_execution(study.id, setup={"pool": "ray"})
    stage = store.begin_stage(store.stages(study.id)[0])
    if is_over:
        store.end_stage(stage, "complete", result={"best": {"val_accuracy": 0.9}})
        store.end_execution(execution, "complete")


def _steps(sizes: Sizes, as_json: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Names of tables, statements that fill them, and their values."""
    accuracy = ":before || (1000 + (i * 7919) % 9000) || :after"
    point = json.dumps({"topology": TOPOLOGY, "recipe.learning_rate": 0.001, "recipe.batch_size": 64})
    for which, count in (("<>", sizes.num_trials), ("=", sizes.num_large)):
        yield (
            "trials",
            f"""INSERT INTO trials
            (stage_id, number, state, point, sampler_state, seed, metrics, details, started_at, ended_at)
            SELECT stages.id, i, 'complete', {as_json.format(":point")}, {as_json.format(":nothing")}, i,
            {as_json.format(accuracy)}, {as_json.format(":nothing")}, 1.0, 2.0
            FROM stages JOIN studies ON studies.id = stages.study_id CROSS JOIN ({_SERIES}) AS numbers
            WHERE studies.name {which} :large""",
            {
                "point": point,
                "nothing": "{}",
                "before": '{"parameters": 1000000, "wall_time_s": 60.5, "val_accuracy": 0.',
                "after": "}",
                "large": LARGE,
                "count": count,
            },
        )
    yield (
        "attempts",
        """INSERT INTO attempts (trial_id, execution_id, number, state, started_at, ended_at)
        SELECT trials.id, executions.id, 0, 'complete', 1.0, 2.0 FROM trials
        JOIN stages ON stages.id = trials.stage_id JOIN executions ON executions.study_id = stages.study_id""",
        {},
    )
    yield (
        "reports",
        f"""INSERT INTO reports (trial_id, epoch, "values", reported_at)
        SELECT trials.id, i, {as_json.format(":before || i || :after")}, 2.0
        FROM trials CROSS JOIN ({_SERIES}) AS numbers ORDER BY trials.id, i""",
        dict(zip(("before", "after"), report_of(1).model_dump_json().split("1", 1), strict=True))
        | {"count": sizes.epochs},
    )
    # An event for each epoch, delivered; of the large study only, because queries are about one study.
    yield (
        "outbox",
        """INSERT INTO outbox (study_id, event, created_at, delivered_at, num_tries, rejected)
        SELECT studies.id, :event, 1.0, 2.0, 0, 0 FROM studies
        JOIN stages ON stages.study_id = studies.id JOIN trials ON trials.stage_id = stages.id
        JOIN reports ON reports.trial_id = trials.id WHERE studies.name = :large""",
        {"event": "x" * 700, "large": LARGE},
    )


_SERIES = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < :count) SELECT i FROM s"


def table_sizes(url: str) -> list[dict[str, Any]]:
    """Rows and bytes of the large tables; bytes, with those of the indices, on PostgreSQL only."""
    engine = connect(url)
    with engine.connect() as connection:
        rows = [{"table": table, "rows": _count(connection, table), **_bytes(connection, table)} for table in _TABLES]
    engine.dispose()
    return rows


def _count(connection: Connection, table: str) -> int:
    return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def _bytes(connection: Connection, table: str) -> dict[str, float]:
    if connection.dialect.name != "postgresql":
        return {}
    found = connection.execute(text(f"SELECT pg_table_size('{table}'), pg_indexes_size('{table}')")).one()
    return {"GB": found[0] / 1e9, "GB of indices": found[1] / 1e9}


def read_pages(settings: Settings) -> list[dict[str, Any]]:
    """Seconds that each page takes, with one large study running."""
    app = make_service(settings, needs_token=False)
    with hold_study(LARGE, settings), TestClient(app) as client:
        rows = [_timed(what, lambda path=path: _get(client, path)) for what, path in _PAGES.items()]  # type: ignore[misc]
        home = Home(settings)
        visible = VisibleStudies(home, Caller("me", "admin"))
        newest = visible.store.trials(visible.stages(visible.study(LARGE)).popitem()[0])[-1].id
        rows.append(_timed("a look for live events", StudyFollower(visible, LARGE, Cursor(newest)).poll))
        rows.append(_timed("whether a dead driver progressed", lambda: _look_for_progress(settings, LARGE)))
        home.close()
    return rows


_PAGES: Mapping[str, str] = {
    "start page": "/",
    "list of 50 studies": "/v1/studies?limit=50",
    "interrupted studies": "/v1/studies?state=interrupted",
    "studies by name": "/v1/studies?text=study-1",
    "page of the large study": f"/studies/{LARGE}",
    "the large study as JSON": f"/v1/studies/{LARGE}",
    "100 of its trials": f"/v1/studies/{LARGE}/trials",
    "the last 100 of its trials": f"/v1/studies/{LARGE}/trials?after=999999999",
    "100 trials with curves": f"/v1/studies/{LARGE}/trials?curves=true",
    "a trial with its curve": f"/v1/studies/{LARGE}/stages/train/trials/100",
    "readiness": "/ready",
}


def _get(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.text[:500])


def _look_for_progress(settings: Settings, name: str) -> None:
    from orchestrator.store.submission_leases import _has_progressed

    engine = connect(settings.database_url)
    with engine.connect() as connection:
        assert _has_progressed(connection, name, since=0)
    engine.dispose()


def _timed(what: str, call: Callable[[], object]) -> dict[str, Any]:
    """Times of a call, of which the first also fills caches, and the CPU time of this process only."""
    seconds, cpu_s = [], []
    for _ in range(_TIMES):
        started, cpu_started = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - started)
        cpu_s.append(time.process_time() - cpu_started)
    return {
        "page": what,
        "first s": seconds[0],
        "median s": statistics.median(seconds),
        "slowest s": max(seconds),
        "CPU s": statistics.median(cpu_s),
    }
