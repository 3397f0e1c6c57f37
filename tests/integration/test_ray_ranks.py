"""Trainings on several GPUs on Ray: two nodes with a declared GPU each, whose processes compute on the CPU."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.engines.interfaces import EngineUnavailableError, Search
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.ray import cluster as ray_clusters
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.engine import RayEngine
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.ray.trial_resources import SharePlanner
from orchestrator.engines.ray.worker import WorkerSettings
from orchestrator.store.records import TrialRecord
from tests.fakes import Switch
from tests.faults.ray_processes import WORKER, are_gone, named
from tests.ray_local import MemoryLedger, add_node, attached_to, connected_to, rate_search, ray_cluster
from tests.unit.training import Recorder
from trainers.config import EpochReport, Resources, Task, TrainTask
from trainers.worker import run_task

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
EPOCHS = 6
WAYS = ("pool", "engine")


@pytest.fixture(scope="module")
def nodes() -> "Iterator[tuple[Cluster, list[int]]]":
    """A cluster, and the processes of its raylets."""
    with ray_cluster() as cluster:
        yield cluster, [add_node(cluster, 2, num_gpus=1) for _ in range(2)]


@pytest.fixture(scope="module")
def connection(nodes: "tuple[Cluster, list[int]]") -> Iterator[RayCluster]:
    with connected_to(nodes[0]) as connection:
        yield connection


@pytest.fixture
def cluster(nodes: "tuple[Cluster, list[int]]", connection: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """The connection, in an environment from which the cluster can be reached."""
    for name, value in attached_to(nodes[0]).items():
        monkeypatch.setenv(name, value)
    return connection


@pytest.fixture
def pool(cluster: RayCluster) -> Iterator[RayPool]:
    """Each of its trainings has two GPUs, which are on two nodes."""
    shares = SharePlanner(cluster, Resources(gpus_per_trial=2))
    pool = RayPool(cluster, shares=shares, workers=WorkerSettings(silent_minutes=5))
    yield pool
    pool.close()


class Curves(MemoryLedger):
    """A ledger that calls a function after each report."""

    def __init__(self, on_report: Callable[[EpochReport], None] = lambda _: None) -> None:
        super().__init__()
        self._on_report = on_report

    def reporter(self, trial: TrialRecord) -> Recorder:
        known, on_report = self.curves.setdefault(trial.number, {}), self._on_report

        class Reporter(Recorder):
            def report(self, report: EpochReport) -> None:
                known[report.epoch] = report
                on_report(report)

        return Reporter()


def run_search(way: str, pool: RayPool, folder: Path, ledger: Curves, *, num_trials: int = 1) -> list[TrialRecord]:
    engine = OptunaEngine() if way == "pool" else RayEngine(pool, scratch=folder / "scratch")
    return engine.run(search_in(folder, num_trials=num_trials), pool, ledger, Switch())


def search_in(folder: Path, *, num_trials: int = 1) -> Search:
    """A search, by default for one trial, with a learning rate so low that rounding errors do not grow."""
    search = rate_search(folder, num_trials=num_trials, epochs=EPOCHS)

    def task(trial: TrialRecord) -> Task:
        made = search.make_task(trial)
        assert isinstance(made, TrainTask)
        recipe = made.configuration.recipe
        gentle = recipe.model_copy(update={"learning_rate": 1e-3 * float(trial.point["recipe.learning_rate"])})
        return made.model_copy(update={"configuration": made.configuration.model_copy(update={"recipe": gentle})})

    return replace(search, make_task=task)


def curve_in_one_process(trial: TrialRecord, folder: Path) -> list[EpochReport]:
    recorder = Recorder()
    assert run_task(search_in(folder).make_task(trial), recorder).state == "complete"
    return recorder.reports


def assert_same_curve(found: list[EpochReport], expected: list[EpochReport]) -> None:
    assert [report.epoch for report in found] == list(range(1, EPOCHS + 1))
    for one, other in zip(found, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_trial_with_two_gpus_has_the_loss_curve_of_one(
    way: str, pool: RayPool, nodes: "tuple[Cluster, list[int]]", tmp_path: Path
) -> None:
    processes: set[int] = set()
    ledger = Curves(lambda _: processes.update(pid for raylet in nodes[1] for pid in named(raylet, f"{WORKER}Rank")))
    (trial,) = run_search(way, pool, tmp_path / "two", ledger)
    assert trial.state == "complete", trial.reason
    assert trial.details["device"] == "2 x cpu"
    assert ledger.lost == []
    assert len(processes) == 1, "one process besides that of the worker"
    assert are_gone(processes)
    assert_same_curve(ledger.curve(trial), curve_in_one_process(trial, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_rank_costs_one_attempt_and_its_epoch(
    way: str, pool: RayPool, nodes: "tuple[Cluster, list[int]]", tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_once(report: EpochReport) -> None:
        if report.epoch == 2 and not killed:
            killed.extend(pid for raylet in nodes[1] for pid in named(raylet, f"{WORKER}Rank"))
            os.kill(killed[0], signal.SIGKILL)

    ledger = Curves(kill_once)
    (trial,) = run_search(way, pool, tmp_path / "two", ledger)
    assert len(killed) == 1
    assert trial.state == "complete", trial.reason
    ((number, reason),) = ledger.lost
    assert number == trial.number
    assert "rank 1 of 2 died" in reason
    assert_same_curve(ledger.curve(trial), curve_in_one_process(trial, tmp_path / "one"))


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_that_fails_alone_fails_its_trial_and_the_next_one_has_a_new_process(
    way: str, pool: RayPool, tmp_path: Path
) -> None:
    pool.settings = replace(pool.settings, run_task="tests.ray_rank_troubles:run_task")
    ledger = Curves()
    failed, complete = run_search(way, pool, tmp_path, ledger, num_trials=2)
    assert failed.state == "failed"
    assert "rank 1 of 2: ValueError: this rank alone has a problem" in (failed.reason or "")
    assert complete.state == "complete", complete.reason
    expected = [] if way == "pool" else [complete.number]  # Tune gives the next trial the process, which then ends
    assert [number for number, _ in ledger.lost] == expected
    first, second = (int((tmp_path / f"leader-{number}").read_text()) for number in range(2))
    assert first != second, "its rank 0 may wait for the failed one"
    assert are_gone([first])


def test_a_trial_that_wants_more_gpus_than_all_nodes_have_is_refused(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_clusters, "_NO_ROOM_S", 0.2)
    pool = RayPool(cluster, shares=SharePlanner(cluster, Resources(gpus_per_trial=3)))
    try:
        with pytest.raises(EngineUnavailableError, match="must fit on the nodes of the Ray cluster, but it asks for"):
            run_search("pool", pool, tmp_path, Curves())
    finally:
        pool.close()
