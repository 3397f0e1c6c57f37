"""What the worker of rank 0 says about a training that another rank ends."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.ray import ranks
from tests.unit.training import configuration
from trainers.config import TaskOutcome, TrainTask
from trainers.training.ranks import CannotTakePartError, RankLostError, RankPlace

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
FAILED = TaskOutcome(state="failed", error="exception", reason="a bug")
UNREADABLE = Lost("rank 2 must read the checkpoint that rank 0 has read, but: it is damaged")


@pytest.fixture
def result_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ranks.RanksResult]:
    """The result of rank 0, from its own end and the ends of the others; `None` has not ended."""
    monkeypatch.setattr(ranks, "_POLL_S", 0.01)
    monkeypatch.setattr(ranks, "_GRACE_S", 0.05)

    def wait(references: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return references, []

    def found(own: TaskOutcome | Exception | None, *ends: TaskOutcome | Lost | None) -> ranks.RanksResult:
        result: Any = queue.SimpleQueue()
        if own is not None:
            result.put(own)
        by_rank = {f"end of rank {rank}": end for rank, end in enumerate(ends, start=1)}
        others = {name: rank for rank, name in enumerate(by_rank, start=1)}
        with patch.object(ray, "wait", wait), patch.object(ray, "get", by_rank.get):
            return ranks._result_of(result, others, len(ends) + 1)

    return found


@pytest.mark.parametrize("own", [RankLostError("another rank left"), None], ids=["gave up", "still waits"])
def test_the_failure_of_another_rank_ends_the_process(
    own: Exception | None, result_of: Callable[..., ranks.RanksResult]
) -> None:
    found = result_of(own, FAILED)
    assert isinstance(found.outcome, TaskOutcome)
    assert (found.outcome.state, found.outcome.reason) == ("failed", "rank 1 of 2: a bug")
    assert found.ends_process


def test_an_outcome_of_rank_0_keeps_the_process(result_of: Callable[..., ranks.RanksResult]) -> None:
    complete = TaskOutcome(state="complete")
    assert result_of(complete, complete) == ranks.RanksResult(complete)
    assert not result_of(complete, complete).ends_process


def test_a_rank_that_cannot_take_part_is_named_before_failures(result_of: Callable[..., ranks.RanksResult]) -> None:
    found = result_of(RankLostError("another rank left"), FAILED, UNREADABLE)
    assert found == ranks.RanksResult(UNREADABLE, ends_process=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(CannotTakePartError(UNREADABLE.reason), UNREADABLE), (RankLostError("another rank left"), None)],
)
def test_a_rank_tells_its_own_cause_only(error: Exception, expected: Lost | None, tmp_path: Path) -> None:
    task = TrainTask(configuration=configuration(), folder=tmp_path)
    with patch("trainers.worker.run_rank", side_effect=error):
        assert ranks.RankWorker().run(task, RankPlace(1, 2, "127.0.0.1", 1, "127.0.0.1")) == expected
