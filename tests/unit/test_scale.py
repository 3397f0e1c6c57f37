"""The workers that only sleep, and the large database, of `benchmarks.scale`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._big_database import LARGE, Sizes, fill, table_sizes
from benchmarks._database_server import database_server
from benchmarks._sleeping import CountingDeliverer, drive_study
from orchestrator.store.repository import Store
from tests.postgres import OWN_SERVER


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    store = Store.open(database_url, artifact_root=tmp_path)
    yield store
    store.close()


def test_sleeping_workers_leave_the_rows_and_events_of_a_real_study(store: Store, tmp_path: Path) -> None:
    counted = CountingDeliverer()
    done = drive_study(
        store, "s", tmp_path / "studies", num_workers=4, num_trials=10, epochs=3, deliverer=counted, sampler="tpe"
    )
    assert (done.trials, done.reports, len(done.seconds_of_tenths)) == (10, 30, 10)
    study = store.find_study("s")
    assert study is not None
    (stage,) = store.stages(study.id)
    trials = store.trials(stage.id)
    assert [trial.state for trial in trials] == ["complete"] * 10
    assert [report.epoch for report in store.reports(trials[-1].id)] == [1, 2, 3]
    # Each epoch has one event, the beginning and the end of a trial have several.
    assert counted.num_events + store.outbox(study.id).count_owed() > 50


def test_a_database_gets_the_rows_that_were_asked_for(store: Store, database_url: str) -> None:
    sizes = Sizes(num_reports=2000, num_studies=4, num_large=8)
    fill(store, database_url, sizes, lambda _: None)
    rows = {row["table"]: row["rows"] for row in table_sizes(database_url)}
    assert rows == {"reports": 2000, "outbox": 400, "trials": 40, "attempts": 40}
    study = store.find_study(LARGE)
    assert study is not None
    (stage,) = store.stages(study.id)
    assert [trial.number for trial in store.trials(stage.id)] == list(range(1, 9))
    assert [report.epoch for report in store.reports(store.trials(stage.id)[0].id)] == list(range(1, 51))


def test_without_postgresql_the_benchmarks_end_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.postgres._binaries", lambda: Path("/nowhere"))
    monkeypatch.delenv(OWN_SERVER, raising=False)
    with (
        pytest.raises(SystemExit, match=r"error: .*PostgreSQL.* not installed.*Install it, or give --database"),
        database_server(None, connections=10),
    ):
        pass
    with database_server("postgresql://db.example/v", connections=10) as server:
        assert not server.can_be_stopped
