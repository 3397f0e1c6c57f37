"""The overhead of our engines (rows and drivers) compared with bare Optuna and Ray Tune, in the same run.

`python -m benchmarks.engines` takes about fifteen minutes on two cores; `--quick` takes three, without the longest
parts. Nothing is trained. "durable" is our engine, with every trial in our database before the next one begins;
"tracked" also writes the events of an MLflow run for each trial, in the same transactions. They are not sent here; in a
study, a thread sends them without delaying trials.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import optuna
from optuna.exceptions import ExperimentalWarning

from benchmarks._machine import processor, resident_mib
from benchmarks._stages import rate_search, stage_in_own_database
from benchmarks._timing import print_table
from benchmarks.samplers import ended_trial
from orchestrator.engines.interfaces import Lost, Objective, Search
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.spec.engine import Asha, ray_is_installed
from orchestrator.stages.searching import StageLedger
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Choice, Dimension, Point
from search_spaces.recipes import PluginChoice
from trainers.config import Task, TaskOutcome
from trainers.training.reporting import Reporter, SilentReporter

CHOICES: tuple[Dimension, ...] = tuple(
    Choice(name=f"choice.{index}", options=("a", "b", "c", "d")) for index in range(12)
)
SCORE = Objective("score", "maximize")
SQLITE_TRIALS = 100
"""Trials on Optuna's SQLite storage, and of our engine when compared with it."""
WINDOW = 50
"""Number of suggestions whose median time is reported."""


Found = TypeVar("Found")


class Spent(NamedTuple):
    """Time of a run."""

    seconds: float
    cpu_s: float
    """CPU time of all threads, which depends less on the load of the machine."""


class EmptyPool:
    """Evaluates a point at once, to a number unrelated to it."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, Any]] = []

    lookahead = 0

    def prepare(self, configurations: Any, *, num_tasks: int) -> None:
        """Do nothing."""

    def has_room(self) -> bool:
        return not self._queue

    def is_busy(self) -> bool:
        return bool(self._queue)

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:  # noqa: ARG002 - the protocol's signature
        self._queue.append((key, task))

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        key, point = self._queue.pop()
        return key, TaskOutcome(state="complete", metrics={"score": score(point)})

    def close(self) -> None:
        """Do nothing."""


def score(point: Any) -> float:
    """A random number that depends only on the point, so that no sampler can learn from it."""
    return random.Random(repr(point)).random()


def main() -> None:
    options = _options()
    head = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "optuna": optuna.__version__,
        "load": os.getloadavg()[0],
        "runs": options.runs,
        "trials": options.trials,
    }
    print(f"{head['processor']}, {head['cores']} cores, Python {head['python']}, Optuna {head['optuna']}")
    print(
        f"load average before the start {head['load']:.1f}; medians of {options.runs} alternating runs; "
        "spread: slowest - fastest"
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report: dict[str, Any] = dict(head)
    for name, benchmark in {"inline": inline, "many": many, "ray": ray_tune}.items():
        if name in options.only:
            report[name] = benchmark(options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("inline", "many", "ray"), default=["inline", "many", "ray"])
    parser.add_argument("--runs", type=int, default=5, help="runs of each way (5); of Ray Tune 3, of its slow way 1")
    parser.add_argument("--trials", type=int, default=1000, help="of the inline engine (1000)")
    parser.add_argument("--many", type=int, default=10_000, help="trials before the slowest suggestion (10000)")
    parser.add_argument("--ray-trials", type=int, default=50, help="of engine ray (50)")
    parser.add_argument("--quick", action="store_true", help="three runs, 300 trials, without plain Ray Tune")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.trials, options.many, options.ray_trials = 3, 300, 3000, 20
    return options


# --- engine optuna, inline ---


def inline(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Trials per second of our engine, of Optuna in memory and of Optuna with its SQLite storage."""
    rows = []
    for sampler in ("random", "tpe"):
        ways: dict[str, Callable[[], Spent]] = {
            "bare": partial(_bare, sampler, options.trials, storage=None),
            "durable": partial(_ours, sampler, options.trials, tracked=False),
            "tracked": partial(_ours, sampler, options.trials, tracked=True),
            "sqlite": partial(_on_sqlite, sampler),
            "tracked, few": partial(_ours, sampler, SQLITE_TRIALS, tracked=True),
        }
        found = _in_turn(ways, options.runs)
        few = {"sqlite": SQLITE_TRIALS, "tracked, few": SQLITE_TRIALS}
        per_s = {
            way: few.get(way, options.trials) / statistics.median(one.seconds for one in spent)
            for way, spent in found.items()
        }
        cpu_s = {way: statistics.median(one.cpu_s for one in spent) for way, spent in found.items()}
        rows.append(
            {
                "sampler": sampler,
                "bare/s": per_s["bare"],
                "durable/s": per_s["durable"],
                "tracked/s": per_s["tracked"],
                "Optuna SQLite/s": per_s["sqlite"],
                "durable of bare": per_s["durable"] / per_s["bare"],
                "tracked of bare": per_s["tracked"] / per_s["bare"],
                "in CPU time": cpu_s["bare"] / cpu_s["tracked"],
                "tracked times SQLite": per_s["tracked, few"] / per_s["sqlite"],
                "bare spread": _spread(found["bare"]),
                "tracked spread": _spread(found["tracked"]),
            }
        )
    print_table(
        f"engine optuna, pool inline, empty objective, {options.trials} trials, 12 choices", rows, medians=False
    )
    return rows


def _spread(spent: list[Spent]) -> float:
    """Range of the wall times, relative to their median."""
    seconds = [one.seconds for one in spent]
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def _in_turn(ways: Mapping[str, Callable[[], Found]], runs: int, *, warm: bool = True) -> dict[str, list[Found]]:
    """Results of each way, in interleaved runs, so that a busy machine affects all of them equally.

    With `warm`, each runs once before, because something is loaded or set up on first use.
    """
    if warm:
        for call in ways.values():
            call()
    found: dict[str, list[Found]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, call in ways.items():
            found[way].append(call())
    return found


@contextmanager
def _spending() -> Iterator[Callable[[], Spent]]:
    """Measure the code inside; the yielded function returns the time so far."""
    started, cpu_started = time.perf_counter(), time.process_time()
    yield lambda: Spent(time.perf_counter() - started, time.process_time() - cpu_started)


def _bare(sampler: str, trials: int, *, storage: str | None) -> Spent:
    def objective(trial: optuna.Trial) -> float:
        return score(
            {one.name: trial.suggest_categorical(one.name, one.options) for one in CHOICES if isinstance(one, Choice)}
        )

    made: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=1)
    if sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            made = optuna.samplers.TPESampler(seed=1, multivariate=True, group=True, n_startup_trials=10)
    study = optuna.create_study(direction="maximize", sampler=made, storage=storage)
    with _spending() as spent:
        study.optimize(objective, n_trials=trials)
        return spent()


def _on_sqlite(sampler: str) -> Spent:
    with tempfile.TemporaryDirectory() as folder:
        return _bare(sampler, SQLITE_TRIALS, storage=f"sqlite:///{folder}/optuna.db")


def _ours(sampler: str, trials: int, *, tracked: bool) -> Spent:
    with stage_in_own_database(EmptyPool()) as context:
        search = _search(sampler, trials)
        ledger = StageLedger(context, search, tracked=tracked)
        with _spending() as spending:
            found = OptunaEngine().run(search, EmptyPool(), ledger, SilentReporter())
            spent = spending()
        assert len(found) == len(context.store.trials(context.stage.id)) == trials
        return spent


def _search(sampler: str, trials: int) -> Search:
    def parameters(point: Point) -> Point:
        return point

    return Search(
        num_trials=trials,
        objectives=(SCORE,),
        suggester=OptunaSuggester(CHOICES, objectives=(SCORE,), sampler=PluginChoice(name=sampler), seed=1),
        make_task=lambda trial: cast("Task", trial.point),
        parameters=parameters,
    )


# --- many trials ---


def many(options: argparse.Namespace) -> dict[str, Any]:
    """Time to ask, list and rebuild with many trials, and the memory that they take."""
    sizes = sorted({options.many // 10, options.many // 2, options.many})
    with stage_in_own_database(EmptyPool()) as context:
        search = _search("random", max(sizes))
        before = resident_mib()
        ledger = StageLedger(context, search, tracked=False)
        started = time.perf_counter()
        OptunaEngine().run(search, EmptyPool(), ledger, SilentReporter())
        seconds = time.perf_counter() - started
        grown = resident_mib() - before
        started = time.perf_counter()
        trials = context.store.trials(context.stage.id)
        listing_s = time.perf_counter() - started
        rebuild_s = _rebuild_s(trials)
    rows = [_asking(sampler, sizes) for sampler in ("random", "tpe", "nsga2", "evolution", "reinforce")]
    print_table(f"time per suggestion (median of the last {WINDOW} before each number of trials)", rows, medians=False)
    facts = {
        "trials": len(trials),
        "trials/s": len(trials) / seconds,
        "MiB more": grown,
        "KiB per trial": 1024 * grown / len(trials),
        "listing s": listing_s,
        "rebuild s": rebuild_s,
    }
    print_table("engine optuna with many trials, random sampler", [facts], medians=False)
    return {"ask": rows, **facts}


def _asking(sampler: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Milliseconds of one `ask`, after so many trials suggested by the same sampler."""
    suggester = _search(sampler, 0).suggester
    spent: list[Spent] = []
    for number in range(max(sizes)):
        with _spending() as spending:
            suggestion = suggester.ask(number)
            spent.append(spending())
        assert suggestion is not None
        metrics = {SCORE.metric: score(suggestion.point)}
        suggester.tell(ended_trial(number, suggestion.point, suggestion.sampler_state, metrics))
    row: dict[str, Any] = {"sampler": sampler}
    for size in sizes:
        last = spent[max(0, size - WINDOW) : size]
        row[f"ms at {size:,}"] = 1000 * statistics.median(one.seconds for one in last)
        row[f"CPU ms at {size:,}"] = 1000 * statistics.median(one.cpu_s for one in last)
    return row


def _rebuild_s(trials: list[TrialRecord]) -> float:
    suggester = _search("tpe", 0).suggester
    started = time.perf_counter()
    for trial in trials:
        suggester.tell(trial)
    return time.perf_counter() - started


# --- engine ray ---


def ray_tune(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our engine `ray` compared with Ray Tune with OptunaSearch and ASHA, on the same Ray."""
    if not ray_is_installed():
        print("\nRay is not installed: skipping engine `ray`")
        return []
    from benchmarks._engine_work import EPOCH_S, EPOCHS
    from orchestrator.engines.ray.cluster import RayCluster

    cluster = RayCluster(num_cpus=min(2, os.cpu_count() or 1))
    started = time.perf_counter()
    cluster.start()
    print(f"\nRay started in {time.perf_counter() - started:.1f} s")
    rows = []
    try:
        runs = min(3, options.runs)
        for name, epochs, epoch_s in (("no work", 1, 0.0), (f"{EPOCHS * EPOCH_S:.0f} s of work", EPOCHS, EPOCH_S)):
            if options.quick and epoch_s:
                continue
            ways: dict[str, Callable[[], float]] = {
                "ours": partial(_on_our_ray, cluster, options.ray_trials, epochs),
                "reuse": partial(_on_tune, options.ray_trials, epochs, epoch_s),
            }
            seconds = _in_turn(ways, runs, warm=not epoch_s)
            plain = [] if epoch_s or options.quick else [_on_plain_tune(options.ray_trials)]
            row = {"work": name, "trials": options.ray_trials}
            for way, found in {"plain s": plain, "reuse_actors s": seconds["reuse"], "ours s": seconds["ours"]}.items():
                row[way] = statistics.median(found) if found else float("nan")
            row["faster than plain"] = row["plain s"] / row["ours s"]
            row["than reuse_actors"] = row["reuse_actors s"] / row["ours s"]
            row["reuse spread s"] = max(seconds["reuse"]) - min(seconds["reuse"])
            row["ours spread s"] = max(seconds["ours"]) - min(seconds["ours"])
            rows.append(row)
            print_table("engine ray with ASHA, tracked in our database, compared with Ray Tune", [row], medians=False)
    finally:
        cluster.close()
    return rows


def _on_our_ray(cluster: Any, trials: int, epochs: int) -> float:
    from orchestrator.engines.ray.engine import RayEngine
    from orchestrator.engines.ray.pool import RayPool
    from orchestrator.engines.ray.worker import WorkerSettings

    work = "no_work" if epochs == 1 else "short_training"
    with stage_in_own_database(EmptyPool()) as context:
        pool = RayPool(cluster, workers=WorkerSettings(run_task=f"benchmarks._engine_work:{work}"))
        asha = Asha(grace_epochs=epochs)  # never stops a trial, so both ways do the same work
        engine = RayEngine(pool, scratch=context.folder / "ray", scheduler=asha)
        search = rate_search(context.folder, trials, epochs, sampler="tpe")
        ledger = StageLedger(context, search, tracked=True)
        started = time.perf_counter()
        found = engine.run(search, pool, ledger, SilentReporter())
        seconds = time.perf_counter() - started
        assert [trial.state for trial in found] == ["complete"] * trials
        return seconds


def _on_tune(trials: int, epochs: int, epoch_s: float) -> float:
    from ray import tune

    from benchmarks._engine_work import AsClass

    space = {"rate": tune.uniform(0.01, 0.99), "epochs": epochs, "epoch_s": epoch_s}
    return _fit(tune.with_resources(AsClass, {"cpu": 1}), space, trials, epochs, reuse=True)


def _on_plain_tune(trials: int) -> float:
    from ray import tune

    from benchmarks._engine_work import as_function

    return _fit(
        tune.with_resources(as_function, {"cpu": 1}), {"rate": tune.uniform(0.01, 0.99)}, trials, 1, reuse=False
    )


def _fit(trainable: Any, space: dict[str, Any], trials: int, epochs: int, *, reuse: bool) -> float:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    folder = Path(tempfile.mkdtemp())
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            search_alg=OptunaSearch(seed=1),
            scheduler=ASHAScheduler(max_t=epochs + 1, grace_period=epochs),
            num_samples=trials,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(name=uuid.uuid4().hex, storage_path=str(folder), verbose=0),
    )
    started = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - started
    shutil.rmtree(folder, ignore_errors=True)
    assert len(results) == trials
    assert not results.errors
    return seconds


if __name__ == "__main__":
    main()
