"""Workers that only sleep and report, in the form of a pool: what is left is the work of a study's driver.

Time is simulated: when the driver asks for the next message, the one that would come first is there. The driver is
therefore always busy, and its speed is the most that it can do.
"""

import heapq
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks._stages import new_stage, rate_search
from orchestrator.cli.progress import PlainProgress
from orchestrator.stages.searching import run_search
from orchestrator.store.repository import Store
from orchestrator.tracking.events import Event
from orchestrator.tracking.outbox import Deliverer, Outbox
from trainers.config import CheckpointRecord, EpochReport, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

SIGNALS = ("gradient_norm", "gradient_noise", "attention_entropy", "dead_units")
"""Signals of each report, as many as studies with learned stopping have."""


class SleepingPool:
    """A pool of workers. An epoch takes each of them a random time around 1.

    Args:
        num_workers: Number of workers.
        epochs: Number of epochs of a training.
        has_checkpoints: Whether trainings have a checkpoint at their end.
    """

    lookahead = 0

    def __init__(self, num_workers: int, epochs: int, *, has_checkpoints: bool = True) -> None:
        self._num_workers, self._epochs, self._has_checkpoints = num_workers, epochs, has_checkpoints
        self._tasks: dict[int, tuple[Task, Reporter]] = {}
        self._due: list[tuple[float, int, int]] = []
        self._now = 0.0
        self._random = random.Random(1)

    def prepare(self, configurations: Any, *, num_tasks: int) -> None:
        """Do nothing."""

    def has_room(self) -> bool:
        return len(self._tasks) < self._num_workers

    def is_busy(self) -> bool:
        return bool(self._tasks)

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:
        self._tasks[key] = task, reporter
        self._sleep(key, 1)

    def wait(self) -> tuple[int, TaskOutcome]:
        while True:
            self._now, key, epoch = heapq.heappop(self._due)
            task, reporter = self._tasks[key]
            report = report_of(epoch)
            reporter.report(report)
            if reporter.should_stop():
                raise AssertionError("these studies are never stopped")
            if epoch < self._epochs:
                self._sleep(key, epoch + 1)
                continue
            del self._tasks[key]
            return key, self._outcome(task, report)

    def close(self) -> None:
        """Do nothing."""

    def _sleep(self, key: int, epoch: int) -> None:
        heapq.heappush(self._due, (self._now + self._random.uniform(0.5, 1.5), key, epoch))

    def _outcome(self, task: Task, report: EpochReport) -> TaskOutcome:
        assert isinstance(task, TrainTask)
        folder = task.folder / f"epoch-{report.epoch:04d}"
        saved = CheckpointRecord(epoch=report.epoch, path=folder, sha256="0" * 64, num_bytes=10**6)
        metrics = {"val_accuracy": report.val_accuracy, "val_loss": report.val_loss, "val_macro_f1": 0.5}
        metrics |= {"parameters": 1e6, "macs": 1e8, "training_macs": 1e12, "wall_time_s": 60.0, "best_epoch": 1.0}
        return TaskOutcome(state="complete", metrics=metrics, checkpoints=(saved,) if self._has_checkpoints else ())


def report_of(epoch: int) -> EpochReport:
    """A report as large as those of real trainings."""
    return EpochReport(
        epoch=epoch,
        train_loss=2.302585092994046 / epoch,
        val_loss=2.1972245773362196 / epoch,
        val_accuracy=1 - 1 / (1 + epoch),
        metrics={"val_macro_f1": 0.4812709214},
        learning_rate=0.001,
        num_images=50_000,
        training_macs=1.5e13,
        wall_time_s=61.28312,
        signals=dict.fromkeys(SIGNALS, 0.7310585786300049),
    )


class Driven(NamedTuple):
    """What a driver did."""

    trials: int
    reports: int
    seconds: float
    cpu_s: float
    """CPU time of this process, without that of the database."""
    seconds_of_tenths: tuple[float, ...]
    """Time of each tenth of the trials, which grows if a trial costs more the more there are."""


class CountingDeliverer:
    """Takes events in place of MLflow."""

    def __init__(self) -> None:
        self.num_events = 0

    def deliver(self, events: Sequence[Event]) -> None:
        self.num_events += len(events)


def drive_study(
    store: Store,
    name: str,
    folder: Path,
    *,
    num_workers: int,
    num_trials: int,
    epochs: int,
    deliverer: Deliverer | None = None,
    sampler: str = "random",
) -> Driven:
    """Run the training stage of a new study with our engine, ledger, store and outbox.

    Args:
        store: The database.
        name: Name of the study.
        folder: Folder of its files; nothing is written there.
        num_workers: Number of concurrent trials.
        num_trials: Number of trials.
        epochs: Epochs of each.
        deliverer: What takes the events; by default, they are counted.
        sampler: The sampler.
    """
    pool = SleepingPool(num_workers, epochs, has_checkpoints=deliverer is None)
    marking = _Marking(pool, num_trials)
    with Path(os.devnull).open("w") as log:
        # The display of submitted studies, whose lines go into a log.
        context = new_stage(store, name, folder, marking, progress=PlainProgress(Console(file=log, width=200)))
        outbox = Outbox(store.outbox(context.study.id), lambda: deliverer or CountingDeliverer())
        started, cpu_started = time.perf_counter(), time.process_time()
        found = run_search(context, rate_search(folder, num_trials, epochs, sampler=sampler), tracked=True)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        outbox.close(timeout_s=0.1)  # what was not delivered by then is left
    assert [trial.state for trial in found] == ["complete"] * num_trials
    times = [started, *marking.marks]
    tenths = tuple(after - before for before, after in itertools.pairwise(times))
    return Driven(num_trials, num_trials * epochs, seconds, cpu_s, tenths)


class _Marking:
    """A pool that notes when each tenth of the trials has ended."""

    def __init__(self, pool: SleepingPool, num_trials: int) -> None:
        self._pool, self._every, self._num_ended = pool, max(num_trials // 10, 1), 0
        self.marks: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def wait(self) -> tuple[int, TaskOutcome]:
        ended = self._pool.wait()
        self._num_ended += 1
        if self._num_ended % self._every == 0:
            self.marks.append(time.perf_counter())
        return ended


def in_threads(calls: Sequence[Callable[[], Driven]]) -> list[Driven]:
    """Results of calls in as many threads."""
    found: list[Driven] = []
    threads = [threading.Thread(target=lambda call=call: found.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(calls), "a study has failed"
    return found
