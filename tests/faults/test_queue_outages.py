"""The queue of a service whose database restarts under load, and whose machines have wrong clocks."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.service.submitting import submit_study
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.store.repository import Store
from orchestrator.store.service_records import NewSubmission, Placement, WantedDevices
from orchestrator.store.submission_leases import LEASE_S
from tests.faults.test_killed_replicas import QUICK, until
from tests.postgres import PostgresServer, running_server

pytestmark = pytest.mark.slow

NUM_CLIENTS, NUM_EACH = 4, 20
PATIENCE_S = 900.0
"""Limit for what takes seconds on an idle machine."""
WRONG_BY_S = 10 * 86400.0
"""Much longer than a test takes on the busiest machine."""
WRONG_CLOCK = """
import os, time
shift, right = float(os.environ["WRONG_BY_S"]), time.time
time.time = lambda: right() + shift
"""
"""As sitecustomize.py, it sets the clock of Python's processes wrong, also of those that they start."""


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that this test may stop."""
    with running_server() as server:
        if not server.can_be_stopped:
            pytest.skip("the server was not started by the tests, so it is not stopped")
        yield server


def test_a_database_that_restarts_under_load_loses_no_study_and_runs_none_twice(server: PostgresServer) -> None:
    url = server.new_database()
    store, done, stop = Store.open(url, wait_s=300), Counter[str](), threading.Event()
    errors: list[BaseException] = []

    def guarded(act: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                act()
            except BaseException as error:
                errors.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def submit(client: int) -> None:
        for number in range(NUM_EACH):
            uid = f"c{client}n{number}"
            new = NewSubmission(uid, f"owner{client}", uid, {}, "", WantedDevices(), "d", idempotency_key=uid)
            assert store.queue().add(new).uid == uid

    def work(replica: str) -> None:
        own = Store.open(url, wait_s=300)
        while not stop.is_set():
            claimed = own.queue().claim(replica, "box", lambda *_: Placement({}), lease_s=PATIENCE_S)
            if claimed is None:
                time.sleep(0.02)
                continue
            own.queue().begin(claimed.uid, claimed.lease, host="h", pid=1, lease_s=PATIENCE_S)
            own.queue().heartbeat(claimed.uid, claimed.lease, lease_s=PATIENCE_S)
            own.queue().end(claimed.uid, claimed.lease, "complete")
            done[claimed.uid] += 1
        own.close()

    workers = [guarded(lambda name=name: work(name)) for name in ("r1", "r2")]  # type: ignore[misc]
    clients = [guarded(lambda number=number: submit(number)) for number in range(NUM_CLIENTS)]  # type: ignore[misc]
    for at_least in (5, 25, 50):
        until(lambda at_least=at_least: len(done) >= at_least or bool(errors), timeout_s=PATIENCE_S)  # type: ignore[misc]
        server.stop()
        server.start()
    for thread in clients:
        thread.join(600)
    until(lambda: len(done) == NUM_CLIENTS * NUM_EACH or bool(errors), timeout_s=PATIENCE_S)
    stop.set()
    for thread in workers:
        thread.join(600)
    assert errors == []
    assert set(done.values()) == {1}
    found = store.queue().page(limit=1000)
    assert {one.state for one in found} == {"complete"}
    assert (len(found), {one.num_deaths for one in found}) == (NUM_CLIENTS * NUM_EACH, {0})
    store.close()


def test_replicas_whose_clocks_are_apart_by_weeks_share_the_queue(tmp_path: Path, postgres: PostgresServer) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(WRONG_CLOCK, encoding="utf-8")
    shared = {"database_url": postgres.new_database(), "artifact_root": tmp_path / "shared", "tracking": False}
    settings = load_settings(home=tmp_path / "a", max_studies=1, **shared)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    for number in range(4):
        file = tmp_path / f"s{number}.yaml"
        file.write_text(QUICK.format(name=f"s{number}"), encoding="utf-8")
        submit_study(store, load_spec(file), file.read_text(encoding="utf-8"))
    replicas = [
        wrong_replica(settings, tmp_path / "clock", by_s=WRONG_BY_S),
        wrong_replica(settings.model_copy(update={"home": tmp_path / "b"}), tmp_path / "clock", by_s=-WRONG_BY_S),
    ]
    try:
        assert [process.wait(PATIENCE_S) for process in replicas] == [0, 0]
    finally:
        for process in replicas:
            process.kill()
    found = store.queue().page()
    assert [one.state for one in found] == ["complete"] * 4
    for one in found:
        took_s = (one.ended_at or 0) - one.created_at
        assert 0 <= took_s < WRONG_BY_S / 2, "by the database's clock"
        assert one.lease == 1 or took_s > LEASE_S, "a lease that had not lapsed was taken over"
    for one in found:
        study = store.find_study(one.name)
        assert study is not None
        for execution in store.executions(study.id):
            wrong_by_s = abs(execution.started_at - one.created_at)
            assert WRONG_BY_S / 2 < wrong_by_s < 2 * WRONG_BY_S, "the clock was wrong"
    store.close()


def wrong_replica(settings: Settings, folder: Path, *, by_s: float) -> "subprocess.Popen[bytes]":
    """A process that runs the queue by a wrong clock."""
    settings.home.mkdir(exist_ok=True)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **settings.environment(), "PYTHONPATH": path, "WRONG_BY_S": str(by_s)}
    return subprocess.Popen([sys.executable, "-P", "-m", "orchestrator.cli.background"], env=environment)
