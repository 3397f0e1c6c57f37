"""Packs on the Ray pool, with trials that need no torch: filling, reports, stops and repeated trials."""

from collections import Counter
from pathlib import Path

import pytest

from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.ray.trial_resources import SharePlanner
from orchestrator.engines.ray.worker import WorkerSettings
from orchestrator.store.records import TrialRecord
from tests.fakes import Switch
from tests.ray_local import MemoryLedger, rate_search
from trainers.config import EpochReport, Resources

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

PACKS_OF_3 = Resources(cpus_per_trial=1, gpus_per_trial=0, trials_per_pack=3)


def make_pool(cluster: RayCluster, worker: str, **given: float) -> RayPool:
    """Both functions of `tests.ray_tasks`: `quick` with `packed_quick`."""
    return RayPool(
        cluster,
        shares=SharePlanner(cluster, PACKS_OF_3),
        workers=WorkerSettings(
            run_task=f"tests.ray_tasks:{worker}",
            run_packed=f"tests.ray_tasks:packed_{worker.partition('_')[0]}",
            **given,
        ),
    )


def run(pool: RayPool, ledger: MemoryLedger, folder: Path, *, num_trials: int, epochs: int = 3) -> list[TrialRecord]:
    try:
        return OptunaEngine().run(rate_search(folder, num_trials=num_trials, epochs=epochs), pool, ledger, Switch())
    finally:
        pool.close()


def test_packs_are_filled_before_they_are_sent(cluster: RayCluster, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    trials = run(make_pool(cluster, "quick"), ledger, tmp_path, num_trials=8)
    assert [trial.state for trial in trials] == ["complete"] * 8
    assert [trial.details["pack_size"] for trial in trials] == [3, 3, 3, 3, 3, 3, 2, 2]
    assert [len(ledger.curve(trial)) for trial in trials] == [3] * 8
    for trial in trials:
        rate = trial.point["recipe.learning_rate"]
        assert [report.val_accuracy for report in ledger.curve(trial)] == pytest.approx([rate / 3, 2 * rate / 3, rate])


def test_a_stop_reaches_the_trial_of_a_pack_that_it_is_meant_for(cluster: RayCluster, tmp_path: Path) -> None:
    class Heard:
        def __init__(self, stop_after: int) -> None:
            self.reports: list[EpochReport] = []
            self._stop_after = stop_after

        def report(self, report: EpochReport) -> None:
            self.reports.append(report)

        def should_stop(self) -> bool:
            return len(self.reports) >= self._stop_after

    pool, ledger = make_pool(cluster, "slow"), MemoryLedger()
    search = rate_search(tmp_path, num_trials=3, epochs=12)
    heard = [Heard(stop_after) for stop_after in (99, 2, 99)]
    for number, reporter in enumerate(heard):
        suggestion = search.suggester.ask(number)
        assert suggestion is not None
        assert pool.has_room()
        pool.submit(number, search.make_task(ledger.begin(number, suggestion)), reporter)
    ended = dict(pool.wait() for _ in range(3))
    pool.close()
    assert {key: outcome.state for key, outcome in ended.items()} == {0: "complete", 1: "interrupted", 2: "complete"}
    assert [len(one.reports) for one in (heard[0], heard[2])] == [12, 12]
    assert 2 <= len(heard[1].reports) < 12


@pytest.mark.slow
def test_a_pack_that_kills_its_worker_is_tried_apart_and_one_alone_is_lost(cluster: RayCluster, tmp_path: Path) -> None:
    ledger = MemoryLedger(max_lost=2)  # each loss costs the start of a process
    trials = run(make_pool(cluster, "deadly_training"), ledger, tmp_path, num_trials=6)
    deadly = {trial.number for trial in trials if trial.point["recipe.learning_rate"] > 0.5}
    assert 0 < len(deadly) < 6
    assert Counter(number for number, _ in ledger.lost) == dict.fromkeys(deadly, 2)
    assert {trial.number for trial in trials if trial.state == "failed"} == deadly
    assert {trial.state for trial in trials if trial.number not in deadly} == {"complete"}


@pytest.mark.slow
def test_a_training_that_hangs_in_a_pack_fails_alone(cluster: RayCluster, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    trials = run(make_pool(cluster, "hanging", silent_minutes=0.2), ledger, tmp_path, num_trials=5)
    hanging = {trial.number for trial in trials if trial.point["recipe.learning_rate"] > 0.5}
    assert 0 < len(hanging) < 5
    assert {trial.number: trial.error for trial in trials if trial.state == "failed"} == dict.fromkeys(
        hanging, "silent"
    )
    assert ledger.lost == []
