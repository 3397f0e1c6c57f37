"""A local Ray cluster for many tests, and a search whose trials need no torch."""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.engines.ray.cluster import RayCluster, without_unused_services
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.store.records import AttemptRecord, TrialRecord
from search_spaces.dimensions import Dimension, Real
from search_spaces.recipes import PluginChoice, Recipe
from tests.fakes import make_trial
from tests.faults.ray_processes import kill, started_by
from trainers.config import Configuration, DataConfig, EpochReport, TaskOutcome, TrainTask

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[1]
TOPOLOGY = "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"
RATES: tuple[Dimension, ...] = (Real(name="recipe.learning_rate", low=0.01, high=0.99),)
ACCURACY = (Objective("val_accuracy", "maximize"),)
MAX_LOST = 5
_START_TRIES = 3


@cache
def cluster_environment() -> dict[str, str]:
    """Variables of every process that starts or uses a cluster of these tests; its workers can import `tests`."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # otherwise the other test processes starve the workers
        # Workers that Ray starts in advance lack the variables of our workers, and are never used.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


@contextmanager
def ray_cluster(*num_cpus: int) -> Iterator["Cluster"]:
    """A Ray cluster of nodes with so many CPU cores each.

    Nodes can be added (`add_node`) and killed. The environment is as before once the cluster has started.
    """
    with patch.dict(os.environ, cluster_environment()):
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            for count in num_cpus:
                add_node(cluster, count)
        except BaseException:
            cluster.shutdown()
            raise
    try:
        yield cluster
    finally:
        with patch.dict(os.environ, cluster_environment()):
            cluster.shutdown()


def add_node(cluster: "Cluster", num_cpus: int, num_gpus: int = 0, resources: Mapping[str, float] | None = None) -> int:
    """Add a node with so many CPU cores, declared GPUs and other resources; the process of its raylet."""
    with patch.dict(os.environ, cluster_environment()), without_unused_services():
        node = _started(
            cluster,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=dict(resources or {}),
            object_store_memory=80 * 2**20,
            include_dashboard=False,
        )
    (raylet,) = node.all_processes["raylet"]
    process: int = raylet.process.pid
    return process


def _started(cluster: "Cluster", **options: Any) -> Any:
    """A new node. Ray gives its processes 30 s to start, which is too little on a busy machine: it is tried again."""
    for attempt in range(1, _START_TRIES + 1):
        before = started_by(os.getpid())
        try:
            return cluster.add_node(**options)
        except Exception as error:  # Ray raises a bare one
            if "timed out during startup" not in str(error) or attempt == _START_TRIES:
                raise
            for process in started_by(os.getpid()).keys() - before.keys():
                with suppress(ProcessLookupError):
                    kill([process])
    raise AssertionError


def attached_to(cluster: "Cluster") -> dict[str, str]:
    """The environment of a process that is to use it."""
    return {"RAY_ADDRESS": cluster.address, **cluster_environment()}


class _KeptConnection(RayCluster):
    """A connection that a pool cannot close."""

    def close(self) -> None:
        pass


@contextmanager
def connected_to(cluster: "Cluster") -> Iterator[RayCluster]:
    """A connection for several tests: for each new one, Ray starts processes, which takes longer than most tests."""
    connection = _KeptConnection(address=cluster.address)
    with patch.dict(os.environ, cluster_environment()):
        connection.start()
    try:
        yield connection
    finally:
        RayCluster.close(connection)


class MemoryLedger:
    """A ledger in memory.

    Args:
        rows: Its trials at the beginning.
        max_lost: Losses after which a trial is given up, by default as many as in the store.
    """

    def __init__(self, rows: Sequence[TrialRecord] = (), *, max_lost: int = MAX_LOST) -> None:
        self.rows = {row.number: row for row in rows}
        self.curves: dict[int, dict[int, EpochReport]] = {}
        self.lost: list[tuple[int, str]] = []
        self._max_lost = max_lost

    def trials(self) -> list[TrialRecord]:
        return [self.rows[number] for number in sorted(self.rows)]

    def begin(self, number: int, suggestion: Suggestion) -> TrialRecord:
        assert number not in self.rows
        self.rows[number] = make_trial(
            number, state="running", point=suggestion.point, sampler_state=suggestion.sampler_state
        )
        return self.rows[number]

    def resume(self, trial: TrialRecord) -> TrialRecord:
        if sum(number == trial.number for number, _ in self.lost) >= self._max_lost:
            self.rows[trial.number] = make_trial(trial.number, state="failed", point=trial.point)
        return self.rows[trial.number]

    def curve(self, trial: TrialRecord) -> list[EpochReport]:
        known = self.curves.get(trial.number, {})
        return [known[epoch] for epoch in sorted(known)]

    def attempt(self, trial: TrialRecord) -> AttemptRecord:
        lost = sum(number == trial.number for number, _ in self.lost)
        return AttemptRecord(id=1 + len(self.lost), trial_id=trial.id, number=lost, num_lost=lost)

    def reporter(self, trial: TrialRecord) -> "_Reporter":
        return _Reporter(self.curves.setdefault(trial.number, {}))

    def finish(self, trial: TrialRecord, outcome: TaskOutcome) -> TrialRecord:
        self.rows[trial.number] = make_trial(
            trial.number,
            state="waiting" if outcome.state == "interrupted" else outcome.state,
            point=trial.point,
            sampler_state=trial.sampler_state,
            **outcome.model_dump(include={"metrics", "details", "reason", "error"}),
        )
        return self.rows[trial.number]

    def settle(self) -> None:
        """Nothing to do: this ledger defers no writes."""

    def lose(self, trial: TrialRecord, reason: str) -> TrialRecord:
        self.lost.append((trial.number, reason))
        self.rows[trial.number] = trial.model_copy(update={"state": "waiting"})
        return self.rows[trial.number]


class _Reporter:
    def __init__(self, curve: dict[int, EpochReport]) -> None:
        self._curve = curve

    def report(self, report: EpochReport) -> None:
        self._curve[report.epoch] = report

    def should_stop(self) -> bool:
        return False


def rate_search(folder: Path, *, num_trials: int, epochs: int, sampler: str = "random") -> Search:
    """A search whose trials differ in their learning rate; see `tests.ray_tasks`."""

    def task(trial: TrialRecord) -> TrainTask:
        configuration = Configuration(
            data=DataConfig(source="digits", max_images=120),
            topology=TOPOLOGY,
            recipe=Recipe(learning_rate=float(trial.point["recipe.learning_rate"]), batch_size=32),
            epochs=epochs,
            seed=trial.number,
        )
        return TrainTask(configuration=configuration, folder=folder / f"trial-{trial.number:04d}")

    return Search(
        num_trials=num_trials,
        objectives=ACCURACY,
        suggester=OptunaSuggester(RATES, objectives=ACCURACY, sampler=PluginChoice(name=sampler), seed=3),
        make_task=task,
        epochs=epochs,
        changeable=RATES,
        weights_of=lambda _: TOPOLOGY,
    )
