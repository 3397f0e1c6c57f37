"""The engine with a scripted suggester, pool and ledger: started, resumed and told trials, and its end."""

from collections import deque

import pytest

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.seeds import seed_for
from orchestrator.store.records import AttemptRecord, TrialRecord
from tests.fakes import Switch, make_trial
from trainers.config import TaskOutcome


class Script:
    """Suggester, ledger and pool in one; `room` tasks at once, the newest ends first."""

    def __init__(
        self,
        *,
        points: int = 100,
        room: int = 1,
        rows: list[TrialRecord] | None = None,
        outcomes: dict[int, TaskOutcome] | None = None,
    ) -> None:
        self.log: list[str] = []
        self.rows = {row.number: row for row in rows or []}
        self.killers: set[int] = set()
        self._points = points
        self._room = room
        self._outcomes = outcomes or {}
        self._queue: deque[int] = deque()
        self._given = 0
        self.num_prepared: int | None = None

    # suggester
    def ask(self, number: int) -> Suggestion | None:
        if number >= self._points:
            return None
        self.log.append(f"ask {number}")
        return Suggestion({"x": number}, {})

    lookahead = 0

    def prepare(self, configurations: object, *, num_tasks: int) -> None:
        assert not configurations, "a search without epochs has nothing to measure"
        self.num_prepared = num_tasks

    def expect(self, trial: TrialRecord) -> None:
        self.log.append(f"expect {trial.number}")

    def tell(self, trial: TrialRecord) -> None:
        self.log.append(f"tell {trial.number} {trial.state}")

    # ledger
    def trials(self) -> list[TrialRecord]:
        return [self.rows[number] for number in sorted(self.rows)]

    def begin(self, number: int, suggestion: Suggestion) -> TrialRecord:
        assert number not in self.rows
        self.rows[number] = make_trial(number, state="running", point=suggestion.point)
        return self.rows[number]

    def resume(self, trial: TrialRecord) -> TrialRecord:
        self.log.append(f"resume {trial.number}")
        if trial.number in self.killers:
            self.rows[trial.number] = make_trial(trial.number, state="failed")
        return self.rows[trial.number]

    def attempt(self, trial: TrialRecord) -> AttemptRecord:
        return AttemptRecord(id=1, trial_id=trial.id, number=0)

    def reporter(self, _trial: TrialRecord) -> None:
        return None

    def finish(self, trial: TrialRecord, outcome: TaskOutcome) -> TrialRecord:
        state = "waiting" if outcome.state == "interrupted" else outcome.state
        self.rows[trial.number] = make_trial(trial.number, state=state, metrics=outcome.metrics)
        return self.rows[trial.number]

    def settle(self) -> None:
        """Nothing is put off."""

    # pool
    def has_room(self) -> bool:
        return len(self._queue) < self._room

    def is_busy(self) -> bool:
        return bool(self._queue)

    def submit(self, key: int, _task: object, _reporter: object) -> None:
        self._queue.append(key)

    def wait(self) -> tuple[int, TaskOutcome]:
        key = self._queue.pop()
        return key, self._outcomes.get(key, TaskOutcome(state="complete", metrics={"y": float(key)}))


def run(script: Script, num_trials: int, control: Switch | None = None) -> list[TrialRecord]:
    search = Search(
        num_trials=num_trials,
        suggester=script,
        make_task=lambda trial: trial,
        objectives=(Objective("y", "maximize"),),
    )
    return OptunaEngine().run(search, script, script, control or Switch())


def test_each_result_is_told_before_the_next_trial_is_asked_for() -> None:
    script = Script()
    trials = run(script, 3)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert script.log == ["ask 0", "tell 0 complete", "ask 1", "tell 1 complete", "ask 2", "tell 2 complete"]


def test_a_pool_with_room_is_filled() -> None:
    script = Script(room=3)
    run(script, 4)
    assert script.log[:3] == ["ask 0", "ask 1", "ask 2"]
    assert sorted(script.log[3:]) == ["ask 3", *(f"tell {number} complete" for number in range(4))]


def test_finished_trials_are_told_and_waiting_ones_go_first() -> None:
    script = Script(rows=[make_trial(0), make_trial(1, state="failed"), make_trial(2, state="waiting")])
    trials = run(script, 4)
    assert script.log == [
        "tell 0 complete",
        "tell 1 failed",
        "expect 2",
        "resume 2",
        "tell 2 complete",
        "ask 3",
        "tell 3 complete",
    ]
    assert [trial.state for trial in trials] == ["complete", "failed", "complete", "complete"]


def test_a_trial_that_kills_its_process_too_often_fails_and_is_told() -> None:
    script = Script(rows=[make_trial(0, state="waiting")])
    script.killers = {0}
    assert [trial.state for trial in run(script, 2)] == ["failed", "complete"]
    assert script.log == ["expect 0", "resume 0", "tell 0 failed", "ask 1", "tell 1 complete"]


def test_a_search_with_enough_trials_asks_for_none() -> None:
    script = Script(rows=[make_trial(0), make_trial(1)])
    assert len(run(script, 2)) == 2
    assert script.num_prepared == 0
    assert script.log == ["tell 0 complete", "tell 1 complete"]


def test_a_space_that_is_used_up_ends_the_search_early() -> None:
    assert len(run(Script(points=2), 5)) == 2
    assert run(Script(points=0), 5) == []


def test_after_stop_nothing_new_begins_and_the_interrupted_trial_waits() -> None:
    control = Switch()
    script = Script(outcomes={1: TaskOutcome(state="interrupted")})
    submit = script.submit

    def stop_at_one(key: int, task: object, reporter: object) -> None:
        control.on = key == 1
        submit(key, task, reporter)

    script.submit = stop_at_one
    trials = run(script, 5, control)
    assert [trial.state for trial in trials] == ["complete", "waiting"]
    assert script.log[-1] == "ask 1"  # what did not end is not told


def test_a_search_that_may_not_begin_leaves_its_rows_as_they_are() -> None:
    control = Switch()
    control.on = True
    script = Script(rows=[make_trial(0, state="waiting")])
    assert [trial.state for trial in run(script, 3, control)] == ["waiting"]
    assert script.log == ["expect 0"]


@pytest.mark.parametrize("parts", [(7, "screen"), (7, "screen", 0), (7, "screen0"), (71, "screen"), (8, "screen")])
def test_seeds_of_different_parts_differ_and_fit_into_31_bits(parts: tuple[int | str, ...]) -> None:
    others = {(7, "screen"), (7, "screen", 0), (7, "screen0"), (71, "screen"), (8, "screen")} - {parts}
    seed = seed_for(*parts)
    assert seed == seed_for(*parts)
    assert 0 <= seed < 2**31
    assert seed not in {seed_for(*other) for other in others}
