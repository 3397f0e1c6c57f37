"""PASHA: rungs, noise, ranking, and a top rung that rises when the ranking there changes."""

from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

from orchestrator.engines.ray.pasha import PashaScheduler, noise_level, ranking_changed, rungs


@pytest.mark.parametrize(
    ("grace", "factor", "budget", "expected"),
    [
        (1, 3, 27, [1, 3, 9, 27]),
        (1, 3, 30, [1, 3, 9, 27, 30]),
        (2, 2, 9, [2, 4, 8, 9]),
        (1, 1.5, 4, [1, 2, 3, 4]),
        (5, 3, 5, [5]),
    ],
)
def test_rungs_grow_by_the_factor_and_end_at_the_budget(
    grace: int, factor: float, budget: int, expected: list[int]
) -> None:
    assert rungs(grace, factor, budget) == expected


def test_noise_is_the_gap_of_those_that_overtook_each_other_and_were_overtaken_back() -> None:
    steady = {"a": [0.1, 0.2, 0.3], "b": [0.2, 0.3, 0.4]}
    assert noise_level(steady, 3) == 0
    crossing = {**steady, "c": [0.15, 0.1, 0.33]}  # above, below and above a: twice; with b never
    assert noise_level(crossing, 3) == pytest.approx(0.03)
    assert noise_level(crossing, 2) == 0  # one change is no way back
    assert noise_level({"a": [0.1], "b": [0.2]}, 3) == 0


def test_a_ranking_within_the_noise_has_not_changed() -> None:
    below = {"a": 0.50, "b": 0.52, "c": 0.10}
    assert not ranking_changed(below, {"a": 0.6, "b": 0.7, "c": 0.2}, 0.0)
    swapped = {"a": 0.7, "b": 0.6, "c": 0.2}
    assert ranking_changed(below, swapped, 0.0)
    assert not ranking_changed(below, swapped, 0.03)
    assert ranking_changed(below, {"a": 0.2, "b": 0.6, "c": 0.7}, 0.03)


class Trial:
    def __init__(self, name: str) -> None:
        self.trial_id = name
        self.status = "RUNNING"


def feed(scheduler: PashaScheduler, curves: dict[str, list[float]]) -> dict[str, tuple[int, str]]:
    """Report each curve up to where the scheduler ends it: at which epoch, and how."""
    ended = {}
    for name, curve in curves.items():
        for epoch, value in enumerate(curve, start=1):
            decision = scheduler.on_trial_result(None, Trial(name), {"epoch": epoch, "val_accuracy": value})
            if decision != "CONTINUE":
                break
        ended[name] = (epoch, decision)
    return ended


def make(**options: Any) -> PashaScheduler:
    return PashaScheduler(
        **{"metric": "val_accuracy", "mode": "max", "budget": 27, "grace": 1, "reduction_factor": 3, **options}
    )


def test_while_the_ranking_holds_no_trial_passes_the_third_rung() -> None:
    scheduler = make()
    curves = {
        name: [level + 0.01 * epoch for epoch in range(27)] for name, level in {"a": 0.1, "b": 0.2, "c": 0.3}.items()
    }
    assert feed(scheduler, curves) == {"a": (9, "PAUSE"), "b": (9, "PAUSE"), "c": (9, "PAUSE")}
    assert scheduler.top_epoch == 9


class Controller:
    """As much of Tune's as a scheduler looks at: one trial that waits."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.search_alg = self

    def get_trials(self) -> list[Trial]:
        return [self.trial]

    def get_live_trials(self) -> list[Trial]:
        return []

    def is_finished(self) -> bool:
        return False


def test_a_changed_ranking_opens_the_next_rung_and_the_best_that_waits_goes_on() -> None:
    scheduler, waits = make(), Trial("rising")
    for epoch in range(1, 10):
        decision = scheduler.on_trial_result(None, waits, {"epoch": epoch, "val_accuracy": 0.1 + 0.05 * epoch})
    waits.status = decision + "D"
    assert waits.status == "PAUSED"
    assert scheduler.choose_trial_to_run(Controller(waits)) is None
    assert feed(scheduler, {"falling": [0.5 - 0.02 * epoch for epoch in range(27)]}) == {"falling": (9, "STOP")}
    assert scheduler.top_epoch == 27
    assert scheduler.choose_trial_to_run(Controller(waits)) is waits


def test_weak_trials_are_stopped_at_the_lower_rungs_as_by_asha() -> None:
    scheduler = make()
    strong = {f"strong-{index}": [0.9] * 27 for index in range(3)}
    assert feed(scheduler, {**strong, "weak": [0.1] * 27})["weak"] == (1, "STOP")


def test_lower_is_better_if_the_metric_is_minimised() -> None:
    scheduler = make(metric="val_accuracy", mode="min")
    strong = {f"strong-{index}": [0.1] * 27 for index in range(3)}
    assert feed(scheduler, {**strong, "weak": [0.9] * 27})["weak"] == (1, "STOP")
