"""A Ray worker that dies, hangs or exhausts memory does not affect other trials."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.placement import Node
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.ray.worker import WorkerSettings
from tests.fakes import Switch, make_trial
from tests.faults.driver import run
from tests.faults.on_ray import EACH, SHORT, WAYS, on_ray, stage_folder, start_on_ray, write_study
from tests.faults.ray_processes import WORKER, are_gone, named
from tests.faults.ray_troubles import SOON_GIVEN_UP, witnessed
from tests.faults.test_deadly_trials import HUGE, MEMORY, SMALL, trained
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true
from tests.ray_local import attached_to, rate_search
from tests.run_tree import assert_run_tree
from tests.tiny import FinishedStudy
from trainers.config import TrainTask
from trainers.training.reporting import SilentReporter

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
HUNG, DEADLY, FROZEN = 1, 2, 3
"""Trials of `tests.faults.ray_troubles.deadly`."""


@pytest.fixture
def cluster(shared_cluster: "Cluster", address: str) -> "Cluster":
    return shared_cluster


@pytest.mark.slow
@pytest.mark.parametrize(("way", "database_url"), EACH, indirect=["database_url"])
def test_a_worker_killed_in_the_middle_of_an_epoch_costs_that_epoch_alone(
    way: str, cluster: "Cluster", short: FinishedStudy, place: Place
) -> None:
    file = write_study(place, on_ray(SHORT, way))
    driver = start_on_ray(place, file, "use_killed_once", VITSEARCH_TRACKING="on", **attached_to(cluster))
    assert driver.wait() == 0, driver.err
    assert_rows_are_true(place)
    assert_is_the_same_study(place, short)
    assert place.query("SELECT count(*) FROM attempts WHERE state = 'lost'") == [(1,)]
    told = [row for row in witnessed(stage_folder(place, "train")) if row["trial"] == "trial-0001"]
    first, second = dict.fromkeys(row["process"] for row in told)
    by_first = [row["report"] for row in told if row["process"] == first]
    by_second = [row["report"] for row in told if row["process"] == second]
    assert [report["epoch"] for report in by_first] == [1]
    assert [report["epoch"] for report in by_second] == [1, 2, 3]
    assert by_second[0] == by_first[0]  # with the time that it took: told again, not trained again
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    assert_run_tree(place.home, short)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "database_url"), EACH, indirect=["database_url"])
def test_trials_that_hang_or_kill_their_worker_again_and_again_fail_alone(
    way: str, cluster: "Cluster", short: FinishedStudy, place: Place
) -> None:
    file = write_study(place, on_ray(SHORT, way, "{silent_minutes: 0.6}"))
    driver = start_on_ray(place, file, "use_deadly", **attached_to(cluster))
    assert driver.wait() == 0, driver.err
    (raylet,) = cluster.head_node.all_processes["raylet"]
    assert are_gone([*named(raylet.process.pid, f"{WORKER}Task"), *named(raylet.process.pid, f"{WORKER}Trial")])
    assert_rows_are_true(place, given_up=1)
    rows = place.rows()
    assert rows.study.state == "complete"
    ours, theirs = trained(rows), trained(short.rows)
    assert [one["point"] for one in ours] == [one["point"] for one in theirs]
    silent = (HUNG, FROZEN) if way == "pool" else (HUNG,)
    well = [number for number in range(len(ours)) if number not in (*silent, DEADLY)]
    assert [ours[number] for number in well] == [theirs[number] for number in well]
    for hung in (rows.trials["train"][number] for number in silent):
        assert (hung.state, hung.error) == ("failed", "silent")
    deadly = rows.trials["train"][DEADLY]
    assert deadly.state == "failed"
    assert f"died {SOON_GIVEN_UP} times in a row" in (deadly.reason or "")
    assert "lower recipe.batch_size" in (deadly.reason or "")
    assert rows.executions == ["complete"]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "database_url"), EACH, indirect=["database_url"])
def test_a_trial_without_memory_on_ray_is_failed_with_advice_and_the_next_one_is_as_ever(
    way: str, cluster: "Cluster", place: Place
) -> None:
    place.home.parent.mkdir(exist_ok=True)
    calm = Place(place.home.with_name("calm"), f"sqlite:///{place.home.parent}/calm/x.db")
    found: list[Any] = []
    for one, first in ((calm, SMALL), (place, HUGE)):
        file = place.home.parent / "memory.yaml"
        text = MEMORY.replace("FIRST", first)
        if one is calm:
            file.write_text(text, encoding="utf-8")
            driver = run(one, "run", file, "--quiet")
        else:
            file.write_text(on_ray(text, way), encoding="utf-8")
            driver = start_on_ray(one, file, "use_little_memory", **attached_to(cluster))
        assert driver.wait() == 0, driver.err
        assert_rows_are_true(one)
        found.append(one.rows())
    failed = found[1].trials["train"][0]
    assert (failed.state, failed.error) == ("failed", "out-of-memory")
    assert "Lower recipe.batch_size" in (failed.reason or "")
    assert trained(found[0])[1] == trained(found[1])[1]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "database_url"), [(way, "postgresql") for way in WAYS], indirect=["database_url"])
def test_the_late_result_of_a_worker_whose_driver_was_superseded_is_refused(
    way: str, cluster: "Cluster", short: FinishedStudy, place: Place, tmp_path: Path
) -> None:
    shared = tmp_path / "artifacts"
    here, there = (Place(tmp_path / name / "home", place.database_url, shared) for name in ("here", "there"))
    first = start_on_ray(here, write_study(here, on_ray(SHORT, way)), "use_late", **attached_to(cluster))
    while not list(tmp_path.glob("artifacts/studies/*/train/trained")):
        assert first.is_alive(), first.err
        time.sleep(0.01)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    assert here.query(cut) == [(True,)]
    second = run(there, "run", write_study(there, SHORT), "--quiet")
    assert second.process.exitcode == 0, second.err
    next(tmp_path.glob("artifacts/studies/*/train/trained")).with_name("go-on").touch()
    assert first.wait() == 1
    assert "another process is running it" in first.err
    assert "Traceback" not in first.err
    assert_rows_are_true(there)
    assert_is_the_same_study(there, short)
    assert there.rows().executions == ["lost", "complete"]


# --- the pool alone ---


@pytest.fixture
def attached(cluster: "Cluster") -> Iterator[RayCluster]:
    attached = RayCluster(address=cluster.address)
    yield attached
    attached.close()


def training(folder: Path, number: int) -> TrainTask:
    """One of 1 s, see `tests.ray_tasks.slow`."""
    trial = make_trial(number, state="running", point={"recipe.learning_rate": 0.5})
    task = rate_search(folder, num_trials=3, epochs=10).make_task(trial)
    assert isinstance(task, TrainTask)
    return task


def test_a_trial_whose_worker_waits_for_a_node_that_has_gone_is_done_by_another(
    attached: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = RayPool(attached, workers=WorkerSettings(run_task="tests.ray_tasks:slow"))
    attached.start()
    monkeypatch.setattr(attached, "nodes", lambda: (Node(2, 0), Node(1, 0)))
    for number in range(3):
        pool.submit(number, training(tmp_path, number), SilentReporter())
    first = pool.wait()
    monkeypatch.setattr(attached, "nodes", lambda: (Node(2, 0),))
    ended = dict([first, pool.wait(), pool.wait()])
    assert {number: outcome.state for number, outcome in ended.items()} == dict.fromkeys(range(3), "complete")
    pool.close()


def test_a_study_told_to_stop_waits_for_no_worker_that_has_not_begun(
    attached: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = RayPool(attached, workers=WorkerSettings(run_task="tests.ray_tasks:slow"))
    attached.start()
    monkeypatch.setattr(attached, "nodes", lambda: (Node(2, 0), Node(1, 0)))
    told = Switch()
    for number in range(4):
        pool.submit(number, training(tmp_path, number), Stopping(told))
    told.on = True
    ended = dict(pool.wait() for _ in range(4))
    assert {number: outcome.state for number, outcome in ended.items()} == dict.fromkeys(range(4), "interrupted")
    pool.close()


class Stopping(SilentReporter):
    """Says stop once a switch is on."""

    def __init__(self, told: Switch) -> None:
        self._told = told

    def should_stop(self) -> bool:
        return self._told.on
