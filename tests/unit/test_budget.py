"""Budgets: their forms, the shares of stages, what is counted, and searches that stop improving."""

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.engines.interfaces import Objective, Suggestion
from orchestrator.spec.budget import Budget, seconds_of
from orchestrator.stages.budget import OVERHEAD_S, StageBudget, share_of_time
from orchestrator.stages.improvement import PatientSuggester, with_patience
from orchestrator.store.records import TrialRecord
from tests.fakes import make_trial
from trainers.config import EpochReport

ACCURACY = Objective("val_accuracy", "maximize")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(epoch: int, macs: float) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.1,
        num_images=10,
        training_macs=macs,
        wall_time_s=1.0,
    )


# --- the file ---


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("0.5 h", 1800)]
)
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert Budget.model_validate(text).time_s == seconds
    assert Budget.model_validate(text).model_dump(mode="json") == text


@pytest.mark.parametrize("raw", ["2", "h", "2 hours", "-1h", "0s", "", 90, 2.5, True, {}, {"trials": 0}, {"time": "x"}])
def test_other_forms_are_refused(raw: Any) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(raw)


def test_a_block_combines_limits() -> None:
    raw = {"time": "2h", "macs": 1e15, "trials": 20}
    assert Budget.model_validate(raw).model_dump(mode="json") == raw


# --- shares ---


def test_the_shares_of_all_stages_use_the_whole_time_except_for_what_stages_take_besides_trials() -> None:
    kinds, left = ["screen", "grow", "train", "stopping", "averaging", "correlate", "promote"], 1000.0
    for index, kind in enumerate(kinds):
        share = share_of_time(kind, kinds[index + 1 :], left)
        assert 0 < share < left
        left -= share + OVERHEAD_S[kind]
    assert left == pytest.approx(0.0)


def test_training_leaves_less_than_a_tenth_for_averaging_and_promotion() -> None:
    assert 0.9 < share_of_time("train", ["averaging", "promote"], 3600.0) / 3600 < 0.95
    assert 0 < share_of_time("train", ["averaging", "promote"], 3.0) < 2.0


# --- counting ---


def test_a_time_is_over_when_the_clock_says_so() -> None:
    clock = Clock()
    budget = StageBudget(time_s=10.0, clock=clock)
    assert not budget.is_over()
    clock.now += 10.0
    assert budget.is_over()


def test_time_is_left_for_the_trainings_of_later_stages() -> None:
    clock = Clock()
    budget = StageBudget(time_s=100.0, later_trainings=2, clock=clock)
    clock.now += 30.0  # the first training
    budget.note_training()
    assert not budget.is_over()
    clock.now += 30.0
    budget.note_training()
    assert budget.is_over()  # the two later ones need 60 s as well, and only 40 s are left


def test_a_short_stage_gets_one_result_in_any_case() -> None:
    budget = StageBudget.for_kind("averaging", time_s=0.0, macs=None, trials=None, described="")
    assert not budget.is_over()
    budget.note_result()
    assert budget.is_over()
    assert StageBudget.for_kind("train", time_s=0.0, macs=None, trials=None, described="").is_over()


def test_a_training_ends_before_an_epoch_that_would_exceed_the_budget() -> None:
    budget = StageBudget(macs=10.0)
    budget.note_report(0, report(1, 4.0))
    budget.note_report(0, report(1, 4.0))  # again, after a resume
    assert not budget.is_over(0)
    budget.note_report(1, report(1, 1.0))
    assert not budget.is_over(0)
    budget.note_report(1, report(2, 1.0))
    budget.note_report(1, report(3, 1.0))
    assert budget.is_over(0)
    assert not budget.is_over(1)
    assert not budget.is_over(None)
    for epoch in (4, 5, 6):
        budget.note_report(1, report(epoch, 1.0))
    assert budget.is_over(None)


# --- searches that stop improving ---


class Numbers:
    """A suggester without end."""

    shortage = None

    def ask(self, number: int) -> Suggestion | None:
        return Suggestion({"x": number}, {})

    def expect(self, trial: TrialRecord) -> None: ...

    def tell(self, trial: TrialRecord) -> None: ...


def told(suggester: PatientSuggester, *accuracies: float | None) -> list[bool]:
    """Whether the search goes on after each trial; `None` is a failed one."""
    found = []
    for number, accuracy in enumerate(accuracies):
        state: Any = "failed" if accuracy is None else "complete"
        metrics = {} if accuracy is None else {"val_accuracy": accuracy}
        suggester.tell(make_trial(number, state=state, metrics=metrics))
        found.append(suggester.ask(number + 1) is not None)
    return found


def test_a_search_ends_after_trials_without_improvement() -> None:
    suggester = PatientSuggester(Numbers(), [ACCURACY], patience=3)
    assert told(suggester, 0.5, 0.4, None, 0.6, 0.6, 0.2, 0.5) == [True] * 6 + [False]
    assert "the last 3 trials" in (suggester.shortage or "")


def test_the_first_trials_begin_in_any_case() -> None:
    suggester = PatientSuggester(Numbers(), [ACCURACY], patience=1, least=3)
    assert told(suggester, 0.5, 0.4, 0.3) == [True, True, False]


def test_with_two_objectives_a_new_trade_off_is_an_improvement() -> None:
    objectives = [ACCURACY, Objective("latency", "minimize")]
    suggester = PatientSuggester(Numbers(), objectives, patience=1)
    for number, (accuracy, latency) in enumerate([(0.5, 2.0), (0.4, 1.0), (0.6, 3.0)]):
        suggester.tell(make_trial(number, metrics={"val_accuracy": accuracy, "latency": latency}))
        assert suggester.ask(number + 1) is not None
    suggester.tell(make_trial(3, metrics={"val_accuracy": 0.5, "latency": 2.5}))
    assert suggester.ask(4) is None


def test_without_a_limit_the_suggester_stays_as_it_is() -> None:
    numbers = Numbers()
    assert with_patience(numbers, [ACCURACY], None) is numbers
