"""The watchdog of trainings in this process."""

import queue
from collections.abc import Set

import pytest

from trainers.training.watchdog import Watchdog


def test_a_training_without_progress_times_out() -> None:
    timed_out: queue.SimpleQueue[Set[int]] = queue.SimpleQueue()
    Watchdog(0.05, timed_out.put).start(1)
    assert timed_out.get(timeout=300) == {1}


def test_a_suspended_timer_runs_again_after_progress() -> None:
    timed_out: queue.SimpleQueue[Set[int]] = queue.SimpleQueue()
    watchdog = Watchdog(0.05, timed_out.put)
    watchdog.start(1)
    watchdog.suspend()
    watchdog.reset()
    assert timed_out.get(timeout=300) == {1}


def test_a_training_that_has_stopped_is_not_watched() -> None:
    timed_out: queue.SimpleQueue[Set[int]] = queue.SimpleQueue()
    watchdog = Watchdog(0.05, timed_out.put)
    watchdog.start(1)
    watchdog.stop(1)
    watchdog.start(2)
    assert timed_out.get(timeout=300) == {2}
    with pytest.raises(queue.Empty):
        timed_out.get_nowait()
