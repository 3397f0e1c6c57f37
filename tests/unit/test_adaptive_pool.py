"""Pool `auto`: a search runs on workers if that ends it earlier, and otherwise in this process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.cost_model import ObservedCost, TrainingShape
from orchestrator.engines.interfaces import EngineUnavailableError, Objective, Search
from orchestrator.engines.pools import adaptive
from orchestrator.engines.pools.adaptive import AdaptivePool, TaskTime, describe_time, saved_by
from orchestrator.engines.training_costs import TrainingCosts
from orchestrator.stages.time_left import SearchTime
from tests.fakes import make_trial
from tests.unit.training import DIGITS, configuration
from trainers.config import ReplayTask, TaskOutcome, TrainTask
from trainers.data.images import load_images

TASK = ReplayTask.model_construct()
DONE = TaskOutcome(state="complete")
NO_REPORTER: Any = None


class FakePool:
    """Ends each task after `task_s` seconds of a fake clock, which only this pool moves."""

    def __init__(self, clock: "Clock", *, task_s: float = 0.0, num_cores: float = 1.0, does_start: bool = True) -> None:
        self.clock, self.task_s, self.num_cores, self.does_start = clock, task_s, num_cores, does_start
        self.keys: list[int] = []
        self.prepared: list[int] = []
        self.num_run = self.num_starts = self.num_closed = self.lookahead = 0

    def start(self) -> None:
        self.num_starts += 1
        if not self.does_start:
            raise EngineUnavailableError("no Ray on this system")

    def prepare(self, configurations: Any, *, num_tasks: int) -> None:
        self.prepared.append(num_tasks)

    def has_room(self) -> bool:
        return not self.keys

    def is_busy(self) -> bool:
        return bool(self.keys)

    def submit(self, key: int, task: Any, reporter: Any) -> None:
        self.keys.append(key)

    def wait(self) -> tuple[int, TaskOutcome]:
        self.clock.now += self.task_s
        self.clock.cpu += self.task_s * self.num_cores
        self.num_run += 1
        return self.keys.pop(0), DONE

    def close(self) -> None:
        self.num_closed += 1


class Clock:
    now = cpu = 0.0


class Pools:
    """An adaptive pool of fakes, with what it said."""

    def __init__(
        self,
        *,
        task_s: float = 0.0,
        num_cores: float = 1.0,
        estimate_s: float | Callable[[], float] = 0.0,
        num_workers: int = 2,
        **workers: Any,
    ) -> None:
        self.clock = Clock()
        self.inline = FakePool(self.clock, task_s=task_s, num_cores=num_cores)
        self.workers = FakePool(self.clock, **workers)
        self.said: list[str] = []
        self.pool = AdaptivePool(
            self.inline,
            lambda: self.workers,
            num_workers=num_workers,
            estimate_s=lambda _: estimate_s() if callable(estimate_s) else estimate_s,
            say=self.said.append,
        )

    def search(self, num_tasks: int, *, trains: bool = False) -> None:
        self.pool.prepare([configuration()] if trains else [], num_tasks=num_tasks)
        for key in range(num_tasks):
            assert self.pool.has_room()
            self.pool.submit(key, TASK, NO_REPORTER)
            assert self.pool.is_busy()
            assert self.pool.wait() == (key, DONE)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**settings: Any) -> Pools:
        made = Pools(**settings)
        monkeypatch.setattr(time, "perf_counter", lambda: made.clock.now)
        monkeypatch.setattr(time, "process_time", lambda: made.clock.cpu)
        return made

    return make


def test_a_short_search_stays_in_the_process_and_starts_nothing(pools: Any) -> None:
    made = pools(task_s=0.1, estimate_s=0.1)
    made.search(50)
    made.search(10, trains=True)
    assert (made.inline.num_run, made.workers.num_starts, made.said) == (60, 0, [])


def test_long_trainings_start_on_workers_at_once_and_say_so(pools: Any) -> None:
    made = pools(estimate_s=20.0)
    made.search(10, trains=True)
    assert (made.inline.num_run, made.workers.num_run, made.workers.prepared) == (0, 10, [10])
    assert made.said == ["about 3 minutes of work: running up to 2 trials at a time"]
    assert made.pool.lookahead == 4
    made.search(1, trains=True)
    assert made.pool.lookahead == 0


def test_the_first_training_corrects_an_estimate(pools: Any) -> None:
    estimates = iter([0.1, 5.0])  # before and after it
    made = pools(task_s=5.0, estimate_s=lambda: next(estimates))
    made.search(20, trains=True)
    assert (made.inline.num_run, made.workers.num_run, made.workers.prepared) == (1, 19, [19])


def test_a_learned_time_of_trainings_that_use_all_cores_is_no_reason_for_workers(pools: Any) -> None:
    made = pools(task_s=5.0, num_cores=2.0, estimate_s=0.1)
    made.search(3, trains=True)
    made.pool._estimate_s = lambda _: 5.0  # learned from those three
    made.search(20, trains=True)
    assert (made.inline.num_run, made.workers.num_starts) == (23, 0)


def test_trainings_of_earlier_executions_do_not_count_because_they_may_have_used_all_cores(pools: Any) -> None:
    costs, one = TrainingCosts(), configuration()
    data = load_images(DIGITS)
    task = TrainTask(configuration=one, folder=Path("unused"))
    search = Search(
        num_trials=11,
        suggester=None,
        make_task=lambda _: task,
        objectives=(Objective("val_accuracy", "maximize"),),
        epochs=one.epochs,
        sizes=lambda: [one],
    )
    metrics = {
        "epochs": float(one.epochs),
        "wall_time_s": 100.0,
        "throughput_images_per_s": one.epochs * len(data.train) / 100.0,
    }
    left = SearchTime(search, data.task, [make_trial(0, metrics=metrics, ended_at=1100.0)], costs=costs)
    assert left.left_s == pytest.approx(10 * 100.0)

    made = pools(task_s=100.0, num_cores=2.0, estimate_s=lambda: costs.training_s([one]))
    made.search(10, trains=True)
    assert (made.inline.num_run, made.workers.num_starts) == (10, 0)


def test_slow_tasks_are_timed_and_the_others_leave_the_process(pools: Any) -> None:
    made = pools(task_s=5.0)
    made.search(20)
    assert (made.inline.num_run, made.workers.num_run, made.workers.prepared) == (2, 18, [18])
    assert made.said == ["about 90 seconds of work: running up to 2 trials at a time"]


def test_the_first_task_which_also_imports_modules_does_not_count(pools: Any) -> None:
    made = pools(task_s=100.0)
    made.pool.prepare([], num_tasks=50)
    made.pool.submit(0, TASK, NO_REPORTER)
    made.pool.wait()
    made.inline.task_s = 0.1
    for key in range(1, 50):
        made.pool.submit(key, TASK, NO_REPORTER)
        made.pool.wait()
    assert (made.inline.num_run, made.workers.num_starts) == (50, 0)


def test_tasks_that_use_all_cores_here_stay(pools: Any) -> None:
    made = pools(task_s=5.0, num_cores=2.0)
    made.search(50)
    assert (made.inline.num_run, made.workers.num_starts) == (50, 0)


def test_waiting_for_a_busy_machine_is_no_work(pools: Any) -> None:
    made = pools(task_s=5.0, num_cores=0.1)
    made.search(40)
    assert (made.inline.num_run, made.workers.num_starts) == (40, 0)


def test_the_last_tasks_of_a_slow_search_do_not_start_workers(pools: Any) -> None:
    made = pools(task_s=5.0)
    made.search(3)
    assert (made.inline.num_run, made.workers.num_starts) == (3, 0)


def test_a_single_trial_is_never_sent_away(pools: Any) -> None:
    made = pools(estimate_s=1e6)
    made.search(1, trains=True)
    assert (made.inline.num_run, made.workers.num_starts) == (1, 0)


def test_started_workers_take_shorter_searches_and_are_started_once(pools: Any) -> None:
    made = pools(task_s=0.5, estimate_s=20.0)
    made.search(10, trains=True)
    made.search(10)
    assert (made.inline.num_run, made.workers.num_starts) == (2, 1)
    made.inline.task_s = 0.01
    made.search(10)
    assert made.inline.num_run == 12
    made.pool.close()
    assert (made.inline.num_closed, made.workers.num_closed) == (1, 1)


def test_workers_that_cannot_start_leave_the_work_to_the_process(pools: Any) -> None:
    made = pools(estimate_s=20.0, does_start=False)
    made.search(10, trains=True)
    made.search(10, trains=True)
    assert (made.inline.num_run, made.workers.num_starts) == (20, 1)
    (said,) = made.said
    assert said == "running one trial at a time, because no workers can be started: no Ray on this system"


def test_time_saved_is_that_of_the_rounds() -> None:
    ten = TaskTime(wall_s=10, cpu_s=10)
    assert saved_by(2, num_tasks=10, task=ten) == 50
    assert saved_by(2, num_tasks=3, task=ten) == 10
    assert saved_by(16, num_tasks=10, task=ten) == 90
    assert saved_by(1, num_tasks=10, task=ten) == 0
    assert saved_by(4, num_tasks=0, task=ten) == 0
    assert saved_by(4, num_tasks=8, task=TaskTime(wall_s=10, cpu_s=20)) == 40


def test_a_time_is_written_in_its_largest_unit() -> None:
    assert [describe_time(seconds) for seconds in (45, 119, 121, 7300)] == [
        "45 seconds",
        "119 seconds",
        "2 minutes",
        "2 hours",
    ]


def test_the_estimate_of_a_training_grows_with_epochs_and_images() -> None:
    training_s = TrainingCosts().training_s
    one = configuration()
    twice = one.model_copy(update={"epochs": 2 * one.epochs})
    small = one.model_copy(update={"data": DIGITS.model_copy(update={"max_images": 100})})
    assert training_s([twice]) == pytest.approx(2 * training_s([one]))
    assert training_s([one, twice]) == pytest.approx(1.5 * training_s([one]))
    assert training_s([small]) < training_s([one])
    assert 0 < training_s([one]) < adaptive.START_S


def test_the_estimate_of_a_training_is_learned_from_others() -> None:
    costs, one = TrainingCosts(), configuration()
    twice = one.model_copy(update={"epochs": 2 * one.epochs})
    data = load_images(DIGITS)
    shape = TrainingShape.of(one, data.task, num_images=len(data.train))
    costs.learn("other", ObservedCost(shape, 7.0))
    assert costs.training_s([twice]) == pytest.approx(2 * one.epochs * 7.0)
    costs.learn("other", ObservedCost(shape, 9.0))
    assert costs.training_s([one]) == pytest.approx(one.epochs * 9.0)
