"""Replayed learning curves: the two figures that the search of stopping criteria optimises."""

import pytest

from plugins.protocols import CurvePoint
from search_spaces.recipes import PluginChoice
from tests.unit.training import Recorder
from trainers.config import ReplayTask, TaskOutcome
from trainers.worker import run_task


def curve(*points: tuple[float, float]) -> tuple[CurvePoint, ...]:
    """Points of (validation loss, validation accuracy)."""
    return tuple(CurvePoint(epoch, 0.5, loss, accuracy) for epoch, (loss, accuracy) in enumerate(points, start=1))


FALLING = curve((0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
LATE_BLOOMER = curve((0.5, 0.5), (0.6, 0.4), (0.7, 0.6), (0.4, 0.9))
"""Stopped by a patience of 1 after its second epoch."""


def replay(*curves: tuple[CurvePoint, ...], patience: int = 1) -> TaskOutcome:
    criterion = PluginChoice(name="patience", settings={"epochs": patience})
    return run_task(ReplayTask(criterion=criterion, curves=curves), Recorder())


def test_a_curve_that_is_stopped_saves_epochs_and_loses_what_came_later() -> None:
    outcome = replay(LATE_BLOOMER)
    assert outcome.state == "complete"
    assert outcome.metrics == pytest.approx({"epochs_saved": 0.5, "accuracy_lost": 0.4, "curves_stopped": 1.0})


def test_a_curve_that_runs_to_its_end_costs_and_saves_nothing() -> None:
    assert replay(FALLING).metrics == {"epochs_saved": 0.0, "accuracy_lost": 0.0, "curves_stopped": 0.0}


def test_metrics_are_means_over_the_curves() -> None:
    outcome = replay(FALLING, LATE_BLOOMER)
    assert outcome.metrics == pytest.approx({"epochs_saved": 0.25, "accuracy_lost": 0.2, "curves_stopped": 0.5})
    assert outcome.details == {"stopped_after": [None, 2]}


def test_a_stop_at_the_last_epoch_is_none() -> None:
    assert replay(LATE_BLOOMER[:2]).metrics["curves_stopped"] == 0


def test_an_accuracy_reached_before_the_stop_is_not_lost() -> None:
    assert replay(curve((0.5, 0.9), (0.6, 0.4), (0.7, 0.6))).metrics["accuracy_lost"] == 0


def test_an_empty_curve_is_explained() -> None:
    outcome = replay(())
    assert outcome.state == "failed"
    assert outcome.reason is not None
    assert "at least 1 epoch" in outcome.reason
