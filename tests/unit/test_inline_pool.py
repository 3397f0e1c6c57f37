"""The pool in this process: packs, reporters, trainings that are repeated alone, and shutdown."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.pools.inline import InlinePool
from tests.unit.training import TOPOLOGY, Recorder, configuration
from trainers import worker
from trainers.config import PackedTrainTask, Task, TaskOutcome, TrainTask

PATIENCE = {"name": "patience", "epochs": 1, "min_delta": 100}
COMPLETE = TaskOutcome(state="complete")


def training(key: int, folder: Path, *, topology: str = TOPOLOGY, epochs: int = 2, **fields: object) -> TrainTask:
    configured = configuration(epochs=epochs, **fields).model_copy(update={"topology": topology, "seed": key})
    return TrainTask(configuration=configured, folder=folder / str(key))


class Scripted:
    """Stands for the trial worker: notes what it was given, and ends packs in the order of `ends`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: Sequence[tuple[int, TaskOutcome]] = ()) -> None:
        self.given: list[list[int]] = []
        self._ends = ends
        monkeypatch.setattr(worker, "run_task", self.run_task)
        monkeypatch.setattr(worker, "run_packed", self.run_packed)

    def run_task(self, task: Task, _reporter: object) -> TaskOutcome:
        assert isinstance(task, TrainTask)
        self.given.append([task.configuration.seed])
        return COMPLETE

    def run_packed(self, task: PackedTrainTask, _reporters: object) -> Iterator[tuple[int, TaskOutcome]]:
        self.given.append([one.configuration.seed for one in task.tasks])
        yield from self._ends or [(position, COMPLETE) for position in range(len(task.tasks))]


def waited(pool: InlinePool) -> list[tuple[int, TaskOutcome | Lost]]:
    found = []
    while pool.is_busy():
        found.append(pool.wait())
    return found


def test_a_pack_is_trained_together_and_ends_one_by_one(tmp_path: Path) -> None:
    pool = InlinePool(trials_per_pack=3)
    recorders = [Recorder() for _ in range(3)]
    stopping = {"stopping": PATIENCE}
    for key, recorder in enumerate(recorders):
        assert pool.has_room()
        pool.submit(key, training(key, tmp_path, epochs=3, **(stopping if key == 1 else {})), recorder)
    assert not pool.has_room()
    key, outcome = pool.wait()
    assert (key, outcome.state, outcome.details["pack_size"]) == (1, "stopped", 3)
    first, stopped, last = (len(recorder.reports) for recorder in recorders)
    assert stopped == 2
    assert {first, last} <= {1, 2}  # the others have not ended, and their second checkpoint may not be written yet
    assert not pool.has_room()
    assert [(key, outcome.state) for key, outcome in waited(pool)] == [(0, "complete"), (2, "complete")]
    assert pool.has_room()


def test_reporters_of_running_trainings_know_it_while_the_pool_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders = [Recorder() for _ in range(4)]
    seen: list[list[bool]] = []

    class Spying(Scripted):
        def run_packed(self, task: PackedTrainTask, reporters: object) -> Iterator[tuple[int, TaskOutcome]]:
            for end in super().run_packed(task, reporters):
                seen.append([recorder.is_running for recorder in recorders])
                yield end

    Spying(monkeypatch)
    pool = InlinePool(trials_per_pack=2)
    for key, topology in enumerate([TOPOLOGY, TOPOLOGY.replace("16,4", "16,8"), TOPOLOGY]):
        pool.submit(key, training(key, tmp_path, topology=topology), recorders[key])
    for _ in range(2):
        pool.wait()
        assert [recorder.is_running for recorder in recorders] == [False] * 4
    assert seen == [[True, False, True, False], [False, False, True, False]]


def test_packs_come_in_the_same_order_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TOPOLOGY.replace("16,4", "16,8")
    for _ in range(2):
        scripted, pool = Scripted(monkeypatch), InlinePool(trials_per_pack=3)
        for key, topology in enumerate([other, TOPOLOGY, other, TOPOLOGY, TOPOLOGY, other]):
            pool.submit(key, training(key, tmp_path, topology=topology), Recorder())
        assert [key for key, _ in waited(pool)] == [0, 2, 5, 1, 3, 4]
        assert scripted.given == [[0, 2, 5], [1, 3, 4]]


def test_a_training_that_others_may_have_failed_is_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory = TaskOutcome(state="failed", error="out-of-memory", details={"pack_size": 3})
    diverged = TaskOutcome(state="failed", error="not-finite", details={"pack_size": 3})
    scripted = Scripted(monkeypatch, [(1, no_memory), (2, diverged), (0, COMPLETE)])
    pool = InlinePool(trials_per_pack=3)
    for key in range(3):
        pool.submit(key, training(key, tmp_path), Recorder())
    assert waited(pool) == [(2, diverged), (0, COMPLETE), (1, COMPLETE)]
    assert scripted.given == [[0, 1, 2], [1]]


def test_a_pack_that_is_to_stop_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Recorder):
        def should_stop(self) -> bool:
            return True

    scripted, pool = Scripted(monkeypatch), InlinePool(trials_per_pack=2)
    for key in range(2):
        pool.submit(key, training(key, tmp_path), Stopped())
    assert [(key, outcome.state) for key, outcome in waited(pool)] == [(0, "interrupted"), (1, "interrupted")]
    assert scripted.given == []


def test_closing_drops_a_pack_that_is_under_way(tmp_path: Path) -> None:
    pool = InlinePool(trials_per_pack=2)
    pool.submit(0, training(0, tmp_path, epochs=4), Recorder())
    pool.submit(1, training(1, tmp_path, epochs=4, stopping=PATIENCE), Recorder())
    assert pool.wait()[0] == 1
    pool.close()
    assert not pool.is_busy()
    assert pool.has_room()
    pool.submit(2, training(2, tmp_path, epochs=1), Recorder())
    assert [(key, outcome.state) for key, outcome in waited(pool)] == [(2, "complete")]
