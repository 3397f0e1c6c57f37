"""Four GPUs of two sizes on two nodes, declared to Ray: shares, packs, too large trials, and GPUs that disappear."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.ray import cluster as ray_clusters
from orchestrator.engines.ray import trial_resources
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.ray.trial_resources import SharePlanner
from orchestrator.engines.ray.worker import WorkerSettings
from orchestrator.store.records import TrialRecord
from tests.fakes import Switch, make_trial
from tests.faults.ray_processes import kill, started_by
from tests.ray_local import MemoryLedger, add_node, attached_to, connected_to, rate_search, ray_cluster
from tests.waiting import until
from trainers.config import EpochReport, Resources, TrainTask

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

from tests import ray_gpus  # noqa: E402 - needs Ray

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow


class TwoNodes(NamedTuple):
    """A cluster, and the processes of the raylets of its nodes."""

    cluster: "Cluster"
    large: int
    """Of the node with two GPUs of 40 GiB."""
    small: int
    """Of the node with two GPUs of 7.5 GiB."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    """Both nodes have four CPU cores."""
    with ray_cluster() as cluster:
        large = add_node(cluster, 4, num_gpus=2, resources={ray_gpus.LARGE: 1})
        small = add_node(cluster, 4, num_gpus=2, resources={ray_gpus.SMALL: 1})
        yield TwoNodes(cluster, large, small)


@pytest.fixture(scope="module")
def connection(nodes: TwoNodes) -> Iterator[RayCluster]:
    with connected_to(nodes.cluster) as connection:
        yield connection


@pytest.fixture
def attached(nodes: TwoNodes, connection: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """A connection to the cluster, whose GPUs are measured as they are declared."""
    for name, value in attached_to(nodes.cluster).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trial_resources, "measure_on_node", ray_gpus.measure_declared)
    monkeypatch.setattr(trial_resources, "describe_devices_apart", ray_gpus.declared_devices)
    return connection


def a_task(folder: Path) -> TrainTask:
    """A training of `rate_search`."""
    task = rate_search(folder, num_trials=1, epochs=1).make_task(make_trial(0, point={"recipe.learning_rate": 0.5}))
    assert isinstance(task, TrainTask)
    return task


def planner(cluster: RayCluster, folder: Path, *, num_trainings: int, **limits: Any) -> SharePlanner:
    """It has measured the trainings of `rate_search`."""
    shares = SharePlanner(cluster, Resources(memory_margin=0, **limits))
    shares.num_trainings = num_trainings
    shares.prepare([a_task(folder).configuration])
    return shares


def run(
    shares: SharePlanner, cluster: RayCluster, folder: Path, ledger: MemoryLedger, *, num_trials: int, together: int
) -> list[TrialRecord]:
    """Run trials, of which so many must run at the same time."""
    (folder / "together").write_text(str(together))
    workers = WorkerSettings(run_task="tests.ray_gpus:on_gpus", run_packed="tests.ray_gpus:packed_on_gpus")
    pool = RayPool(cluster, shares=shares, workers=workers)
    try:
        return OptunaEngine().run(rate_search(folder, num_trials=num_trials, epochs=8), pool, ledger, Switch())
    finally:
        pool.close()


def used_gpus(folder: Path) -> Counter[str]:
    """Number of trials of each GPU, by node and number."""
    return Counter(path.read_text() for path in folder.glob("gpus-*"))


class Curves(MemoryLedger):
    """Calls a function once, when the first trial has reported its second epoch."""

    def __init__(self, on_report: Callable[[], object]) -> None:
        super().__init__()
        self._on_report: Callable[[], object] | None = on_report

    def reporter(self, trial: TrialRecord) -> Any:
        """A reporter that keeps the curve."""
        inner, ledger = super().reporter(trial), self

        class Reporter:
            def report(self, report: EpochReport) -> None:
                inner.report(report)
                if report.epoch >= 2 and ledger._on_report is not None:
                    call, ledger._on_report = ledger._on_report, None
                    call()

            def should_stop(self) -> bool:
                return False

        return Reporter()


def test_trainings_use_all_gpus_and_the_smallest_one_decides_how_many_share_each(
    attached: RayCluster, tmp_path: Path
) -> None:
    shares = planner(attached, tmp_path, num_trainings=100)
    assert shares(a_task(tmp_path)) == (2, 1)  # 4 GiB: ten on a large GPU, but one on a small one
    trials = run(shares, attached, tmp_path, MemoryLedger(), num_trials=4, together=4)
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert sorted(used_gpus(tmp_path).values()) == [1, 1, 1, 1]


def test_a_pack_is_no_larger_than_fits_the_smallest_gpu(attached: RayCluster, tmp_path: Path) -> None:
    shares = planner(attached, tmp_path, num_trainings=8, trials_per_pack=4)
    assert shares.pack_size(a_task(tmp_path)) == 2  # 1 + 2 * 3 GiB of 7.5
    trials = run(shares, attached, tmp_path, MemoryLedger(), num_trials=8, together=1)
    assert [trial.state for trial in trials] == ["complete"] * 8
    assert {trial.details["pack_size"] for trial in trials} == {2}
    assert set(used_gpus(tmp_path).values()) <= {2, 4, 6, 8}


def test_two_trials_with_two_gpus_each_fit_and_one_with_five_is_refused_with_the_nodes(
    attached: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = SharePlanner(attached, Resources(gpus_per_trial=2))
    share = shares(a_task(tmp_path))
    assert share.num_gpus == 2
    assert attached.room_for(*share) == 2
    assert attached.holds([share, share])
    assert not attached.holds([share, share, share])
    five = SharePlanner(attached, Resources(gpus_per_trial=5, cpus_per_trial=1))(a_task(tmp_path))
    assert attached.room_for(*five) == 0
    monkeypatch.setattr(ray_clusters, "_NO_ROOM_S", 0.0)
    with pytest.raises(EngineUnavailableError, match=r"asks for 1 CPU cores and 5 GPUs.*4 cores and 2 GPUs"):
        attached.room_for(*five)


def test_trainings_of_gpus_that_disappear_go_on_on_the_others(
    nodes: TwoNodes, attached: RayCluster, tmp_path: Path
) -> None:
    """This is the last test of the module, because it removes a node."""
    shares = planner(attached, tmp_path, num_trainings=100)
    ledger = Curves(lambda: kill([*started_by(nodes.small), nodes.small]))
    trials = run(shares, attached, tmp_path, ledger, num_trials=6, together=4)
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert {number for number, _ in ledger.lost} <= set(range(4))
    assert 1 <= len(ledger.lost) <= 2
    assert [len(ledger.curve(trial)) for trial in trials] == [8] * 6
    assert len({where.split()[0] for where in used_gpus(tmp_path)}) == 1  # all have ended on the large ones
    two = shares(a_task(tmp_path))
    until(lambda: attached.room_for(*two) == 2)  # Ray may take a while to notice that a node is gone
