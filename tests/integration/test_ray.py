"""Pool and engine `ray` with trials that need no torch: reports, stops, losses, resumption and cleanup."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from orchestrator.engines.interfaces import EngineUnavailableError, Lost, Search
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.ray.trial_resources import SharePlanner
from orchestrator.engines.ray.worker import WorkerSettings
from orchestrator.spec.engine import Asha, HyperBand, Pasha, Scheduler
from orchestrator.store.records import TrialRecord
from tests.fakes import Switch
from tests.ray_local import TOPOLOGY, MemoryLedger, rate_search
from tests.ray_tasks import epochs_of
from trainers.config import DataConfig, EpochReport, Resources, ScoreTask, TaskOutcome

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")


def score_task(seed: int) -> ScoreTask:
    return ScoreTask(data=DataConfig(source="digits"), topology=TOPOLOGY, proxies=(), seed=seed)


class Heard:
    """A reporter that remembers, and says stop after so many reports."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.reports: list[EpochReport] = []
        self._stop_after = stop_after

    def report(self, report: EpochReport) -> None:
        self.reports.append(report)

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.reports) >= self._stop_after


# --- the pool ---


def test_short_tasks_are_sent_ahead_and_each_has_one_outcome(cluster: RayCluster) -> None:
    pool = RayPool(cluster, workers=WorkerSettings(run_task="tests.ray_tasks:quick"))
    found: dict[int, TaskOutcome | Lost] = {}
    asked = most = 0
    while len(found) < 300:
        while asked < 300 and pool.has_room():
            pool.submit(asked, score_task(asked), Heard())
            asked += 1
        most = max(most, asked - len(found))
        key, outcome = pool.wait()
        assert key not in found
        found[key] = outcome
    assert not pool.is_busy()
    assert [found[key].metrics["params"] for key in range(300)] == list(range(300))
    assert 2 < most < 100
    assert len(pool.process_ids()) == 2
    pool.close()


def test_a_task_that_kills_its_worker_is_lost_and_those_behind_it_are_not(cluster: RayCluster) -> None:
    pool = RayPool(cluster, workers=WorkerSettings(max_concurrent=1, run_task="tests.ray_tasks:deadly"))
    outcomes = {}
    for key in range(2):  # until the pool knows how short the tasks are
        pool.submit(key, score_task(key), Heard())
    while pool.is_busy():
        key, outcomes[key] = pool.wait()
    for key in range(2, 12):
        pool.submit(key, score_task(key), Heard())
    while pool.is_busy():
        key, outcomes[key] = pool.wait()
    assert isinstance(outcomes.pop(3), Lost)
    assert {key: outcome.state for key, outcome in outcomes.items()} == dict.fromkeys(
        [0, 1, 2, *range(4, 12)], "complete"
    )
    pool.close()


def test_reports_arrive_while_a_training_runs_and_a_stop_reaches_it(cluster: RayCluster, tmp_path: Path) -> None:
    pool = RayPool(cluster, workers=WorkerSettings(run_task="tests.ray_tasks:slow"))
    search = rate_search(tmp_path, num_trials=2, epochs=200)
    heard = [Heard(stop_after=3), Heard(stop_after=5)]
    for number, reporter in enumerate(heard):
        assert pool.has_room()
        pool.submit(number, search.make_task(begun(number)), reporter)
    assert not pool.has_room()
    ended = dict(pool.wait() for _ in range(2))
    assert {key: outcome.state for key, outcome in ended.items()} == {0: "interrupted", 1: "interrupted"}
    for reporter, at_least in zip(heard, (3, 5), strict=True):
        assert [report.epoch for report in reporter.reports][:at_least] == list(range(1, at_least + 1))
        assert len(reporter.reports) < 60
    pool.close()


def test_a_killed_worker_costs_a_trial_nothing_but_the_epoch_it_was_in(cluster: RayCluster, tmp_path: Path) -> None:
    pool = RayPool(cluster, workers=WorkerSettings(max_concurrent=1, run_task="tests.ray_tasks:slow"))
    ledger, search = MemoryLedger(), rate_search(tmp_path, num_trials=1, epochs=8)
    killed = kill_after(tmp_path / "trial-0000", 3)
    (trial,) = OptunaEngine().run(search, pool, ledger, Switch())
    killed.join()
    assert trial.state == "complete"
    assert [number for number, _ in ledger.lost] == [0]
    assert len(ledger.curves[0]) == 8
    assert len(set(epochs_of(tmp_path / "trial-0000").values())) == 2
    pool.close()


# --- the engine ---


def run_engine(
    cluster: RayCluster,
    search: Search,
    ledger: MemoryLedger,
    folder: Path,
    *,
    run_task: str,
    scheduler: Scheduler | None = None,
    control: Switch | None = None,
    silent_minutes: float | None = None,
    shares: SharePlanner | None = None,
) -> list[TrialRecord]:
    from orchestrator.engines.ray.engine import RayEngine

    workers = WorkerSettings(run_task=f"tests.ray_tasks:{run_task}", silent_minutes=silent_minutes)
    pool = RayPool(cluster, shares=shares, workers=workers)
    engine = RayEngine(pool, scratch=folder / "scratch", scheduler=scheduler)
    trials = engine.run(search, pool, ledger, control or Switch())
    assert not (folder / "scratch").exists()
    return trials


def test_a_trial_that_asha_stops_is_stopped_at_its_rung_and_no_epoch_more(cluster: RayCluster, tmp_path: Path) -> None:
    ledger, search = MemoryLedger(), rate_search(tmp_path, num_trials=8, epochs=9)
    trials = run_engine(cluster, search, ledger, tmp_path, run_task="quick", scheduler=Asha(reduction_factor=3))
    states = {trial.state for trial in trials}
    assert states == {"complete", "stopped"}
    for trial in trials:
        curve = [report.epoch for report in ledger.curve(trial)]
        if trial.state == "complete":
            assert curve == list(range(1, 10))
            assert trial.rung is None
        else:
            assert trial.rung in (1, 3)
            assert curve == list(range(1, trial.rung + 1))
            assert trial.details["scheduler"] == "asha"
            assert f"at epoch {trial.rung} of 9" in trial.reason
            assert trial.metrics["epochs"] == trial.rung


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [HyperBand(), Pasha()], ids=["hyperband", "pasha"])
def test_schedulers_whose_trials_wait_for_others_leave_none_waiting(
    cluster: RayCluster, tmp_path: Path, scheduler: Scheduler
) -> None:
    ledger, search = MemoryLedger(), rate_search(tmp_path, num_trials=10, epochs=9)
    trials = run_engine(cluster, search, ledger, tmp_path, run_task="quick", scheduler=scheduler)
    assert {trial.state for trial in trials} == {"complete", "stopped"}
    best = max(trials, key=lambda trial: trial.point["recipe.learning_rate"])
    assert len(ledger.curves[best.number]) == max(len(curve) for curve in ledger.curves.values())
    for trial in trials:
        assert (trial.rung or 9) == len(ledger.curves[trial.number])


@pytest.mark.parametrize("engine", ["optuna", "ray"])
def test_a_trial_too_large_for_this_machine_is_refused_at_once(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(RayCluster, "is_local", True)  # a cluster may get a larger node
    search = rate_search(tmp_path, num_trials=2, epochs=3)
    shares = SharePlanner(cluster, Resources(cpus_per_trial=64, gpus_per_trial=0))
    if engine == "ray":
        run = partial(run_engine, cluster, search, MemoryLedger(), tmp_path, run_task="quick", shares=shares)
    else:
        run = partial(OptunaEngine().run, search, RayPool(cluster, shares=shares), MemoryLedger(), Switch())
    with pytest.raises(EngineUnavailableError, match=r"asks for 64 CPU cores and 0 GPUs, and Ray has 2 cores and"):
        run()


def test_a_loss_that_is_not_finite_is_a_failure_and_the_search_goes_on(cluster: RayCluster, tmp_path: Path) -> None:
    ledger, search = MemoryLedger(), rate_search(tmp_path, num_trials=6, epochs=3)
    trials = run_engine(cluster, search, ledger, tmp_path, run_task="diverging", scheduler=Asha(grace_epochs=3))
    assert_fast_rates_failed(trials, "not-finite")


def assert_fast_rates_failed(trials: list[TrialRecord], error: str) -> None:
    failed = {trial.number for trial in trials if trial.state == "failed"}
    assert failed == {trial.number for trial in trials if trial.point["recipe.learning_rate"] > 0.5}
    assert 0 < len(failed) < len(trials)
    assert {trial.error for trial in trials if trial.number in failed} == {error}
    assert {trial.state for trial in trials if trial.number not in failed} <= {"complete", "stopped"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["optuna", "ray"])
def test_a_training_that_hangs_fails_alone(cluster: RayCluster, tmp_path: Path, engine: str) -> None:
    ledger, search = MemoryLedger(), rate_search(tmp_path, num_trials=5, epochs=3)
    if engine == "ray":
        trials = run_engine(cluster, search, ledger, tmp_path, run_task="hanging", silent_minutes=0.2)
    else:
        pool = RayPool(cluster, workers=WorkerSettings(silent_minutes=0.2, run_task="tests.ray_tasks:hanging"))
        trials = OptunaEngine().run(search, pool, ledger, Switch())
        pool.close()
    assert_fast_rates_failed(trials, "silent")


def test_a_stopped_study_goes_on_with_a_new_tuner_where_it_was(cluster: RayCluster, tmp_path: Path) -> None:
    control, ledger = Switch(), MemoryLedger()
    lose, reporter = ledger.finish, ledger.reporter

    def stop_in_the_middle(trial: TrialRecord):
        heard = reporter(trial)
        report = heard.report

        def told(one: EpochReport) -> None:
            report(one)
            control.on = control.on or (trial.number, one.epoch) == (2, 2)

        heard.report = told
        return heard

    ledger.reporter = stop_in_the_middle
    first = run_engine(
        cluster, rate_search(tmp_path, num_trials=5, epochs=6), ledger, tmp_path, run_task="slow", control=control
    )
    assert control.on
    assert {trial.state for trial in first} == {"complete", "waiting"}
    before = {number: epochs_of(tmp_path / f"trial-{number:04d}") for number in range(5)}
    ledger.reporter, ledger.finish = reporter, lose
    trials = run_engine(cluster, rate_search(tmp_path, num_trials=5, epochs=6), ledger, tmp_path, run_task="slow")
    assert [trial.state for trial in trials] == ["complete"] * 5
    after = {number: epochs_of(tmp_path / f"trial-{number:04d}") for number in range(5)}
    assert all(after[number].items() >= before[number].items() for number in before)  # none trained again
    straight = rate_search(tmp_path, num_trials=5, epochs=6).suggester
    assert [trial.point for trial in trials] == [straight.ask(number).point for number in range(5)]


def test_a_trial_whose_process_is_killed_under_tune_goes_on_from_its_own_checkpoint(
    cluster: RayCluster, tmp_path: Path
) -> None:
    ledger, search = MemoryLedger(), rate_search(tmp_path, num_trials=2, epochs=8)
    killed = kill_after(tmp_path / "trial-0001", 3)
    trials = run_engine(cluster, search, ledger, tmp_path, run_task="slow")
    killed.join()
    assert [trial.state for trial in trials] == ["complete", "complete"]
    assert {number for number, _ in ledger.lost} == {1}
    assert len(set(epochs_of(tmp_path / "trial-0001").values())) == 2
    assert sorted(ledger.curves[1]) == list(range(1, 9))


# --- Ray of our own ---


LOCAL_RAY = """
import os, subprocess, sys
from functools import partial
from pathlib import Path
from orchestrator.engines.ray.cluster import RayCluster
cluster = RayCluster(num_cpus=1)
cluster.start()
import ray
folder = ray._private.worker._global_node.get_temp_dir_path()
commands = {path.parent.name: path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")}
ours = {number: command for number, command in commands.items() if folder in command}
assert not [command for command in ours.values() if "monitor.py" in command or "dashboard.py" in command]
listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout.splitlines()
places = [line.split()[3] for line in listening if any(f"pid={number}," in line for number in ours)]
print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0), folder, *places, flush=True)
if sys.argv[1] == "killed":
    sys.stdin.read()
"""


@pytest.mark.skipif(shutil.which("ss") is None, reason="`ss` is not installed, which tells who listens where")
@pytest.mark.parametrize("way", ["ended", pytest.param("killed", marks=pytest.mark.slow)])
def test_local_ray_has_our_priority_listens_on_the_loopback_address_only_and_ends_with_its_process(
    tmp_path: Path, way: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL_RAY, way],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    niceness, folder, *places = process.stdout.readline().split()
    if way == "killed":
        process.kill()
    process.communicate(timeout=300)
    assert int(niceness) == 0
    assert len(places) >= 3
    assert all("127.0.0.1" in place for place in places), places
    assert wait_until(lambda: folder not in processes())
    assert Path(folder).exists() == (way == "killed")  # the next process to start Ray removes it
    assert list(tmp_path.iterdir()) == []


def begun(number: int) -> TrialRecord:
    from tests.fakes import make_trial

    return make_trial(number, state="running", point={"recipe.learning_rate": 0.5})


def kill_after(folder: Path, epochs: int) -> threading.Thread:
    """Kills the process that trains in a folder, once it has trained so many epochs there."""

    def watch() -> None:
        assert wait_until(lambda: len(epochs_of(folder)) >= epochs)
        os.kill(epochs_of(folder)[1], signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def wait_until(condition, timeout_s: float = 300.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
