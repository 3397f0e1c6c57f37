"""The state machine of a search's trials, over a ledger in memory and a scripted suggester."""

import pytest

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.engines.trial_queue import StartedTrial, TrialQueue
from orchestrator.store.records import TrialRecord
from tests.fakes import Switch, make_trial
from tests.ray_local import MAX_LOST, MemoryLedger
from trainers.config import TaskOutcome

COMPLETE = TaskOutcome(state="complete", metrics={"y": 1.0})
INTERRUPTED = TaskOutcome(state="interrupted")


class ScriptedSuggester:
    """Has `num_points` points, and records what it is told."""

    def __init__(self, num_points: int = 100) -> None:
        self.num_points = num_points
        self.expected: list[int] = []
        self.told: list[tuple[int, str]] = []

    def ask(self, number: int) -> Suggestion | None:
        return Suggestion({"x": number}, {"noted": number}) if number < self.num_points else None

    def expect(self, trial: TrialRecord) -> None:
        self.expected.append(trial.number)

    def tell(self, trial: TrialRecord) -> None:
        self.told.append((trial.number, trial.state))


class Stage:
    """A queue with everything around it."""

    def __init__(self, *rows: TrialRecord, num_trials: int = 3, num_points: int = 100) -> None:
        self.suggester = ScriptedSuggester(num_points)
        self.ledger = MemoryLedger(rows)
        self.control = Switch()
        search = Search(
            num_trials=num_trials,
            suggester=self.suggester,
            make_task=lambda trial: f"task {trial.number}",
            objectives=(Objective("y", "maximize"),),
        )
        self.queue = TrialQueue(search, self.ledger, self.control)

    def start(self) -> int | None:
        started = self.queue.start()
        return None if started is None else started.record.number

    def states(self) -> list[str]:
        assert self.queue.trials() == self.ledger.trials()
        return [trial.state for trial in self.queue.trials()]


def test_a_new_trial_starts_with_its_suggestion_and_task() -> None:
    stage = Stage()
    started = stage.queue.start()
    assert isinstance(started, StartedTrial)
    assert (started.record.number, started.record.state, started.task) == (0, "running", "task 0")
    assert (started.record.point, started.record.sampler_state) == ({"x": 0}, {"noted": 0})


def test_no_more_trials_start_than_the_search_has() -> None:
    stage = Stage(num_trials=2)
    assert [stage.start() for _ in range(3)] == [0, 1, None]
    assert stage.queue.is_finished


@pytest.mark.parametrize("state", ["complete", "stopped", "failed"])
def test_a_finished_trial_is_told_once(state: str) -> None:
    stage = Stage()
    stage.start()
    stage.queue.finish(0, TaskOutcome(state=state, metrics={"y": 1.0}))
    assert stage.suggester.told == [(0, state)]
    assert stage.start() == 1
    assert stage.states() == [state, "running"]


def test_an_interrupted_trial_waits_and_is_neither_told_nor_started_again() -> None:
    stage = Stage(num_trials=1)
    stage.start()
    stage.queue.finish(0, INTERRUPTED)
    assert stage.suggester.told == []
    assert stage.states() == ["waiting"]
    assert stage.start() is None


def test_a_lost_trial_starts_again_before_new_ones_as_a_new_attempt() -> None:
    stage = Stage()
    assert [stage.start(), stage.start()] == [0, 1]
    stage.queue.lose(0, "its worker died")
    assert stage.ledger.lost == [(0, "its worker died")]
    assert stage.states() == ["waiting", "running"]
    assert [stage.start(), stage.start(), stage.start()] == [0, 2, None]


def test_losing_the_last_trial_keeps_the_search_going() -> None:
    stage = Stage(num_trials=1)
    stage.start()
    assert stage.queue.is_finished
    stage.queue.lose(0, "its worker died")
    assert not stage.queue.is_finished
    assert stage.start() == 0


def test_a_trial_that_is_lost_too_often_fails_and_the_next_one_starts_in_its_place() -> None:
    stage = Stage(num_trials=2)
    for _ in range(MAX_LOST):
        assert stage.start() == 0
        stage.queue.lose(0, "its worker died")
    assert stage.start() == 1
    assert stage.suggester.told == [(0, "failed")]
    assert stage.states() == ["failed", "running"]


def test_rows_of_an_earlier_execution_are_told_or_expected_and_waiting_ones_resume_first() -> None:
    stage = Stage(make_trial(0), make_trial(1, state="waiting"), make_trial(2, state="failed"), num_trials=4)
    assert stage.suggester.told == [(0, "complete"), (2, "failed")]
    assert stage.suggester.expected == [1]
    assert [stage.start(), stage.start(), stage.start()] == [1, 3, None]


def test_the_suggester_is_asked_again_after_a_result_if_it_had_no_point_before() -> None:
    stage = Stage(num_points=1)
    assert [stage.start(), stage.start()] == [0, None]
    assert not stage.queue.is_finished
    stage.suggester.num_points = 2  # as a sampler's final choice, which waits for all results
    stage.queue.finish(0, COMPLETE)
    assert stage.start() == 1


def test_the_search_is_finished_once_no_point_is_left_and_nothing_runs() -> None:
    stage = Stage(num_points=1)
    assert [stage.start(), stage.start()] == [0, None]
    stage.queue.finish(0, COMPLETE)
    assert stage.start() is None
    assert stage.queue.is_finished


def test_after_a_stop_request_nothing_starts_and_running_trials_may_still_end() -> None:
    stage = Stage(make_trial(0, state="waiting"))
    assert [stage.start(), stage.start()] == [0, 1]
    stage.queue.lose(0, "its worker died")
    stage.control.on = True
    assert stage.queue.is_stopped
    assert stage.queue.is_finished
    assert stage.start() is None
    stage.queue.finish(1, COMPLETE)
    assert stage.states() == ["waiting", "complete"]
    assert stage.suggester.told == [(1, "complete")]
