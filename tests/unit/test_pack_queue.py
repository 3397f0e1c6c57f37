"""Which trainings the queue packs together, and when it asks for more."""

from pathlib import Path

import pytest

from orchestrator.engines.pools.pack_queue import PackQueue
from tests.unit.training import DIGITS, TOPOLOGY, configuration
from trainers.config import ScoreTask, TrainTask

OTHER = TOPOLOGY.replace("16,4", "16,8")


def training(key: int, topology: str = TOPOLOGY, *, alone: bool = False) -> TrainTask:
    configured = configuration().model_copy(update={"topology": topology, "seed": key})
    return TrainTask(configuration=configured, folder=Path(str(key)), alone=alone)


def filled(*topologies: str, largest: int) -> PackQueue:
    queue = PackQueue()
    for key, topology in enumerate(topologies):
        queue.add(key, training(key, topology), largest=largest)
    return queue


def emptied(queue: PackQueue) -> list[tuple[int, ...]]:
    packs = []
    while queue:
        expected = queue.peek()
        packs.append(queue.take())
        assert packs[-1] == expected
    return packs


def test_trainings_of_one_topology_come_out_together() -> None:
    assert emptied(filled(TOPOLOGY, OTHER, TOPOLOGY, TOPOLOGY, OTHER, TOPOLOGY, largest=3)) == [(0, 2, 3), (1, 4), (5,)]


def test_the_fullest_pack_comes_first_and_the_older_one_on_a_tie() -> None:
    assert emptied(filled(OTHER, TOPOLOGY, TOPOLOGY, OTHER, TOPOLOGY, largest=4)) == [(1, 2, 4), (0, 3)]
    assert emptied(filled(OTHER, TOPOLOGY, largest=4)) == [(0,), (1,)]


def test_without_packs_tasks_come_out_as_they_came() -> None:
    assert emptied(filled(TOPOLOGY, OTHER, TOPOLOGY, largest=1)) == [(0,), (1,), (2,)]


def test_more_is_wanted_until_a_pack_is_full() -> None:
    queue = filled(TOPOLOGY, OTHER, TOPOLOGY, largest=3)
    assert queue.wants_more
    queue.add(3, training(3), largest=3)
    assert queue.has_full_pack
    assert not queue.wants_more
    assert queue.take() == (0, 2, 3)
    assert queue.wants_more


def test_no_more_is_wanted_once_four_packs_could_be_full() -> None:
    topologies = [TOPOLOGY.replace("16,4", f"16,{4 * number}") for number in range(1, 9)]
    assert filled(*topologies[:7], largest=2).wants_more
    assert not filled(*topologies, largest=2).wants_more


def test_a_task_that_is_no_training_is_a_full_pack() -> None:
    queue = filled(TOPOLOGY, largest=4)
    score = ScoreTask(data=DIGITS, topology=TOPOLOGY, proxies=(), seed=0)
    queue.add(1, score, largest=4)
    queue.add(2, training(2), largest=4)
    assert not queue.wants_more
    assert emptied(queue) == [(1,), (0, 2)]


def test_a_training_that_is_to_be_alone_is_alone_and_does_not_wait_for_others() -> None:
    queue = filled(TOPOLOGY, TOPOLOGY, largest=4)
    queue.add(2, training(2, alone=True), largest=4)
    queue.add(3, training(3), largest=4)
    assert emptied(queue) == [(2,), (0, 1, 3)]


def test_what_is_put_back_comes_first_in_its_order_and_alone() -> None:
    queue = filled(TOPOLOGY, TOPOLOGY, largest=2)
    queue.put_back([(7, training(7)), (8, training(8))])
    queue.add(9, training(9), largest=2)
    assert emptied(queue) == [(7,), (8,), (0, 1), (9,)]


def test_a_training_with_a_plugin_that_cannot_be_packed_is_alone_and_the_reason_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from plugins.losses.cross_entropy import CrossEntropy

    monkeypatch.setattr(CrossEntropy, "packs", False, raising=False)
    queue = filled(TOPOLOGY, TOPOLOGY, TOPOLOGY, largest=3)
    assert emptied(queue) == [(0,), (1,), (2,)]
    (record,) = caplog.records
    assert record.getMessage() == (
        "Trials with the loss 'cross-entropy' train alone: it cannot be computed with stacked weights."
    )
