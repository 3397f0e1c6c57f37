"""Replicas and drivers of submitted studies are killed: nothing is lost, and nothing runs twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.service.submitting import find_submission, submit_study
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.store.database import connect
from orchestrator.store.repository import Store
from orchestrator.store.service_records import NewSubmission, Placement, SubmissionRecord, WantedDevices
from tests.waiting import TIMEOUT_S, until

pytestmark = pytest.mark.slow

QUICK = """\
study: {name}
pool: inline
data: {{source: digits, image_size: 32, max_images: 60, max_test_images: 20}}
stages:
  - stage: screen
    space: {{name: as-vit, width: 8, depths: [1, 1, 1, 1]}}
    num_trials: 2
    batch_size: 4
    proxies: [params]
    rank_by: [params]
"""

# A process that is killed when its transaction is about to be committed, or was committed.
KILLED = """
import os, signal, sys
from sqlalchemy import event
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Placement

url, call, when = sys.argv[1:]
store = Store.open(url)
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if when == "before":
    event.listen(store._engine, "commit", die)
queue = store.queue()
if call == "claim":
    queue.claim("killed", "box", lambda *_: Placement({}))
elif call == "begin":
    queue.begin("u1", 1, host="h", pid=1)
else:
    queue.end("u1", 1, "complete")
die()
"""


def new_submission() -> NewSubmission:
    return NewSubmission("u1", "alice", "alice~digits", {}, "", WantedDevices(), "d")


def claim(store: Store, lease_s: float = 60.0) -> SubmissionRecord | None:
    return store.queue().claim("r", "box", lambda *_: Placement({}), lease_s=lease_s)


def killed(url: str, call: str, when: str) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, url, call, when], check=False, timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL


def lapse(url: str, uid: str) -> None:
    """Let the lease of a submission end if it runs."""
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE submissions SET lease_until = 0 WHERE state = 'running' AND uid = '{uid}'")
    engine.dispose()


@pytest.mark.parametrize(
    ("call", "when", "state", "lease"),
    [
        ("claim", "before", "waiting", 0),
        ("claim", "after", "running", 1),
        ("begin", "before", "running", 1),
        ("begin", "after", "running", 1),
        ("end", "before", "running", 1),
        ("end", "after", "complete", 1),
    ],
)
def test_a_kill_leaves_a_state_from_which_the_queue_continues(
    empty_store: Store, migrated_database: str, call: str, when: str, state: str, lease: int
) -> None:
    empty_store.queue().add(new_submission())
    if call != "claim":
        assert claim(empty_store) is not None
    killed(migrated_database, call, when)
    found = find_submission(empty_store, "u1")
    assert (found.state, found.lease) == (state, lease)
    assert (claim(empty_store) is not None) == (state == "waiting")
    lapse(migrated_database, "u1")
    again = claim(empty_store)
    assert (again is not None) == (state != "complete")
    assert find_submission(empty_store, "u1").lease == lease + (state != "complete") + (state == "waiting")


def test_two_replicas_share_a_database_and_a_killed_one_loses_nothing(
    empty_store: Store, migrated_database: str, tmp_path: Path
) -> None:
    shared = {"database_url": migrated_database, "artifact_root": tmp_path / "shared", "tracking": False}
    settings = load_settings(home=tmp_path / "a", max_studies=2, **shared)
    for number in range(3):
        file = tmp_path / f"s{number}.yaml"
        file.write_text(QUICK.format(name=f"s{number}"))
        submit_study(empty_store, load_spec(file), file.read_text())
    first = replica(settings)
    other = replica(settings.model_copy(update={"home": tmp_path / "b"}))
    try:
        until(lambda: any(one.pid for one in empty_store.queue().page(states=["running"])))
        first.kill()
        running = next(one for one in empty_store.queue().page(states=["running"]) if one.pid)
        os.kill(running.pid or 0, signal.SIGKILL)
        if running.replica and f"-{first.pid}-" in running.replica:
            lapse(migrated_database, running.uid)  # nobody waits for its process
        until(lambda: {one.state for one in empty_store.queue().page()} == {"complete"})
        assert other.wait(TIMEOUT_S) == 0
    finally:
        for process in (first, other):
            process.kill()
    for number in range(3):
        study = empty_store.find_study(f"s{number}")
        assert study is not None
        states = [one.state for one in empty_store.executions(study.id)]
        assert states.count("complete") == 1
        assert set(states) <= {"complete", "lost"}
        assert [len(empty_store.trials(stage.id)) for stage in empty_store.stages(study.id)] == [2]


def replica(settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "orchestrator.cli.background"]
    return subprocess.Popen(command, env={**os.environ, **settings.environment()})
