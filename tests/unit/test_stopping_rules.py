"""Arithmetic of the stopping criteria against their formulas."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from plugins.protocols import CurvePoint, Signal, Stopper, class_key, planned
from plugins.registry import create
from plugins.stopping import extrapolation
from plugins.stopping.extrapolation import extrapolate, shapes_of
from plugins.stopping.label_wave import first_minimum, moving_averages
from plugins.stopping.memorization_onset import Rise, fit_rise
from plugins.stopping.progress_quotient import training_progress
from plugins.stopping.successive_halving import halving_rungs
from trainers.tasks.replay import replay_curves


def curve_with(signal: Signal, values: Sequence[float]) -> list[CurvePoint]:
    return [CurvePoint(epoch, 1.0, 1.0, 0.5, {signal.value: value}) for epoch, value in enumerate(values, start=1)]


def accuracy_curve(accuracies: Sequence[float]) -> list[CurvePoint]:
    return [CurvePoint(epoch, 1.0, 1.0, accuracy) for epoch, accuracy in enumerate(accuracies, start=1)]


def stop_of(stopper: Stopper, curve: Sequence[CurvePoint]) -> int | None:
    return next((end for end in range(1, len(curve) + 1) if stopper.reason_to_stop(curve[:end])), None)


# --- progress quotient ---


def test_training_progress_is_the_mean_above_the_minimum_per_mille() -> None:
    assert training_progress([0.5, 0.4, 0.6]) == pytest.approx(1000 * (1.5 / (3 * 0.4) - 1), rel=1e-9)
    assert training_progress([0.0, 0.0]) == 0
    assert training_progress([0.0, 0.2]) == math.inf


def test_the_quotient_is_checked_at_the_ends_of_strips() -> None:
    trained = [1.0, 0.5, 0.5, 0.5, 0.5, 0.4995]
    valid = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6]
    curve = [CurvePoint(epoch, *values, 0.5) for epoch, values in enumerate(zip(trained, valid, strict=True), start=1)]
    # GL is 20 % from epoch 3 on; P_2 is 0 in epoch 4, and P_3 0.667 per mille in epoch 6.
    assert stop_of(create("stopping", "progress-quotient", {"strip": 2}), curve) == 4
    assert stop_of(create("stopping", "progress-quotient", {"strip": 3, "threshold": 29}), curve) == 6
    assert stop_of(create("stopping", "progress-quotient", {"strip": 3, "threshold": 31}), curve) is None


# --- signals ---


def test_the_persistence_waits_for_growth() -> None:
    curve = curve_with(Signal.NEURAL_PERSISTENCE, [0.9, 0.2, 0.3, 0.3, 0.31, 0.32, 0.4])
    assert stop_of(create("stopping", "neural-persistence", {"patience": 3, "burn_in": 1}), curve) is None
    settings = {"patience": 3, "burn_in": 1, "min_delta": 0.05}
    assert stop_of(create("stopping", "neural-persistence", settings), curve) == 6


def test_the_evidence_is_averaged() -> None:
    curve = curve_with(Signal.EVIDENCE, [-1.0, 0.5, -1.0, 0.4, 0.7])
    assert stop_of(create("stopping", "evidence", {"window": 1}), curve) == 2
    assert stop_of(create("stopping", "evidence", {"window": 3}), curve) == 5


def test_increases_of_the_disparity_need_not_be_consecutive() -> None:
    curve = curve_with(Signal.GRADIENT_DISPARITY, [3.0, 4.0, 2.0, 2.0, 3.0, 1.0, 5.0])
    assert stop_of(create("stopping", "gradient-disparity", {"increases": 3}), curve) == 7


# --- label wave ---


def test_the_first_minimum_ends_the_first_fall() -> None:
    assert moving_averages([3.0, 6.0, 0.0, 3.0], window=3) == [3.0, 3.0]
    assert first_minimum([5.0, 6.0, 4.0, 4.0, 4.5, 1.0, 2.0]) == 2
    assert first_minimum([1.0, 2.0, 3.0]) is None
    assert first_minimum([3.0, 2.0, 1.0]) is None


def test_label_wave_stops_in_the_epoch_after_the_minimum_and_names_it() -> None:
    curve = curve_with(Signal.CHANGED_TRAINING_PREDICTIONS, [0.9, 0.6, 0.3, 0.2, 0.1, 0.3, 0.5])
    stopper = create("stopping", "label-wave")
    # Averages of 3: 0.6, 0.367, 0.2, 0.2, 0.3 in epochs 3 to 7.
    assert stop_of(stopper, curve) == 7
    assert "was lowest in epoch 5, with 20 %" in str(stopper.reason_to_stop(curve))


# --- memorization onset ---


def test_the_fit_finds_the_rise_and_its_onset() -> None:
    a, b, c = 0.9, 0.8, 3.0
    accuracies = [a * (1 - math.exp(-(epoch**b) / c)) for epoch in range(1, 31)]
    rise = fit_rise(tuple(accuracies))
    assert rise is not None
    assert tuple(rise) == pytest.approx((a, b, c), rel=1e-4)

    def slope(t: float) -> float:
        return a * b / c * t ** (b - 1) * math.exp(-(t**b) / c)

    assert Rise(a, b, c).slowdown(7) == pytest.approx(abs(slope(7) - slope(1)) / slope(1), rel=1e-9)
    onset = next(epoch for epoch in range(1, 31) if abs(slope(epoch) - slope(1)) / slope(1) > 0.9)
    stopper = create("stopping", "memorization-onset", {"per_class": False})
    assert stop_of(stopper, curve_with(Signal.TRAINING_ACCURACY, accuracies)) == onset


def test_enough_classes_must_have_passed_their_onset() -> None:
    fast = [1 - math.exp(-epoch) for epoch in range(1, 13)]
    slow = [0.02 * epoch for epoch in range(1, 13)]
    curve = [
        CurvePoint(
            epoch,
            1.0,
            1.0,
            0.5,
            {
                class_key(Signal.CLASS_TRAINING_ACCURACY, 0): one,
                class_key(Signal.CLASS_TRAINING_ACCURACY, 1): other,
                class_key(Signal.CLASS_TRAINING_ACCURACY, 2): 0.0,  # never predicted
            },
        )
        for epoch, (one, other) in enumerate(zip(fast, slow, strict=True), start=1)
    ]
    some = create("stopping", "memorization-onset", {"share": 0.3})
    assert stop_of(some, curve) == 4
    assert "that of 1 of the 3 classes" in str(some.reason_to_stop(curve[:4]))
    assert stop_of(create("stopping", "memorization-onset", {"share": 0.5}), curve) is None


# --- curve extrapolation ---


def test_the_prediction_is_that_of_a_multivariate_t(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, each shape's values and the predicted one have a joint Student's t distribution."""
    values, num_epochs, limit = np.array([0.31, 0.42, 0.40, 0.49, 0.52, 0.55]), 20, 0.6
    shapes, prior = shapes_of(num_epochs)
    unit = np.ptp(values)
    known, above = (values - values.mean()) / unit, (limit - values.mean()) / unit
    evidence, chances = [], []
    for shape in shapes:
        rows = np.column_stack([np.ones(7), [*shape[:6], shape[-1]]])
        spread = np.eye(7) + rows @ rows.T * (extrapolation.REACH / extrapolation.NOISE) ** 2
        scale = spread * extrapolation.NOISE**2  # of the joint distribution with 2 degrees of freedom
        seen = scale[:6, :6]
        evidence.append(stats.multivariate_t(shape=seen, df=2).pdf(known))
        gain = np.linalg.solve(seen, scale[:6, 6])
        distance = known @ np.linalg.solve(seen, known)
        width = (2 + distance) / 8 * (scale[6, 6] - scale[:6, 6] @ gain)
        chances.append(stats.t(8, gain @ known, math.sqrt(width)).sf(above))
    weights = prior * np.array(evidence)
    expected = float(weights @ chances / weights.sum())
    found = extrapolate(values.tolist(), num_epochs=num_epochs)
    assert found.chance_above(limit) == pytest.approx(expected, rel=1e-6)
    assert found.chance_above(found.quantile(0.3)) == pytest.approx(0.7, rel=1e-6)


def test_the_intervals_hold_what_they_promise() -> None:
    draws = np.random.default_rng(8)
    held = []
    for _ in range(60):
        level, gain, power = draws.uniform(0.5, 0.9), draws.uniform(0.1, 0.5), draws.uniform(0.3, 1.5)
        curve = level - gain * np.arange(1, 41) ** -power + draws.normal(scale=0.01, size=40)
        prediction = extrapolate(curve[:12].tolist(), num_epochs=40)
        held.append(prediction.quantile(0.05) <= curve[-1] <= prediction.quantile(0.95))
    assert 0.8 <= np.mean(held) <= 1.0


def test_a_training_that_cannot_reach_the_best_of_the_study_is_stopped() -> None:
    flat = [0.50 - 0.2 / epoch**2 for epoch in range(1, 21)]
    stopper = create("stopping", "curve-extrapolation")
    assert stop_of(stopper, planned(accuracy_curve(flat), num_epochs=20, best=0.9)) == 5
    assert stop_of(stopper, planned(accuracy_curve(flat), num_epochs=20, best=0.45)) is None
    assert stop_of(stopper, planned(accuracy_curve(flat), num_epochs=20, best=None)) is None
    alone = create("stopping", "curve-extrapolation", {"compare_with": "self"})
    assert stop_of(alone, planned(accuracy_curve(flat), num_epochs=20, best=0.9)) is None


def test_the_reason_shows_losses_as_such() -> None:
    curve = [
        CurvePoint(epoch, 1.0, 1.0, 0.5, score=-0.5 - 0.2 / epoch**2, num_epochs=20, best=-0.1) for epoch in range(1, 6)
    ]
    reason = str(create("stopping", "curve-extrapolation").reason_to_stop(curve))
    assert "better than the best trial so far, 0.1," in reason
    assert "between 0.4" in reason


def test_an_extrapolation_needs_the_number_of_epochs() -> None:
    with pytest.raises(ValueError, match="each point must have `num_epochs`"):
        create("stopping", "curve-extrapolation").reason_to_stop(accuracy_curve([0.1, 0.2, 0.3, 0.4, 0.5]))


def test_replayed_curves_compare_with_those_before_them_that_were_not_stopped() -> None:
    strong = accuracy_curve([0.8 - 0.3 / epoch for epoch in range(1, 16)])
    weak = accuracy_curve([0.5 - 0.3 / epoch for epoch in range(1, 16)])
    stopper = create("stopping", "curve-extrapolation")
    ends = [replayed.stopped_after for replayed in replay_curves(stopper, [weak, strong, weak])]
    assert ends == [None, None, 5]


# --- comparison with the curves of earlier trials ---


def test_rungs_are_at_powers_of_the_factor() -> None:
    assert halving_rungs(2, 3, until=54) == [2, 6, 18, 54]
    assert halving_rungs(1, 1.5, until=6) == [1, 2, 3, 4, 6]  # 1, 1.5, 2.25, 3.375, 5.0625
    assert halving_rungs(5, 2, until=4) == []


def test_a_training_goes_on_at_a_rung_only_among_the_best_third() -> None:
    earlier = (*((0.1, 0.1 * number) for number in range(1, 6)), (0.9,))
    stopper = create("stopping", "successive-halving", {"first_epochs": 2})
    cutoff = 0.3 + (4 * 2 / 3 - 2) * 0.1  # between the third and the fourth of five
    for score, expected in ((cutoff - 1e-6, 2), (cutoff + 1e-6, None)):
        curve = planned(accuracy_curve([0.0, score, 0.0]), num_epochs=9, best=None, earlier=earlier)
        assert stop_of(stopper, curve) == expected
    few = create("stopping", "successive-halving", {"first_epochs": 2, "min_trials": 6})
    assert stop_of(few, planned(accuracy_curve([0.0, 0.0]), num_epochs=9, best=None, earlier=earlier)) is None
    first = create("stopping", "successive-halving", {"min_trials": 6})
    assert stop_of(first, planned(accuracy_curve([0.0, 0.0]), num_epochs=9, best=None, earlier=earlier)) == 1


def test_successive_halving_decides_as_ray_tune() -> None:
    schedulers = pytest.importorskip("ray.tune.schedulers.async_hyperband", reason="the reference is Ray Tune's rule")
    draws = np.random.default_rng(3)
    curves = [accuracy_curve(np.sort(draws.uniform(size=27)).tolist()) for _ in range(40)]
    for first, factor in ((1, 3), (2, 2), (3, 4)):
        stopper = create("stopping", "successive-halving", {"first_epochs": first, "reduction_factor": factor})
        bracket = schedulers._Bracket(first, 26, factor, 0)  # a stop after the last epoch does not count
        expected = []
        for number, curve in enumerate(curves):
            trial = type("Trial", (), {"trial_id": str(number)})
            stops = (
                point.epoch
                for point in curve[:-1]
                if bracket.on_result(trial, point.epoch, point.val_accuracy) != "CONTINUE"
            )
            expected.append(next(stops, None))
        found = [one.stopped_after for one in replay_curves(stopper, curves)]
        assert found == expected
        assert None in found
        assert len(set(found)) > 2


def test_the_median_rule_compares_the_best_so_far_with_means_up_to_the_epoch() -> None:
    earlier = ((0.2, 0.4, 0.9), (0.1, 0.3, 0.2), (0.4, 0.6, 0.8), (0.9,))  # means up to epoch 2: 0.3, 0.2, 0.5
    for best, expected in ((0.3 + 1e-9, None), (0.3 - 1e-9, 2)):
        curve = planned(accuracy_curve([best, 0.1]), num_epochs=9, best=None, earlier=earlier)
        assert stop_of(create("stopping", "median"), curve) == expected
    curve = planned(accuracy_curve([0.1, 0.1, 0.1]), num_epochs=9, best=None, earlier=earlier)
    assert stop_of(create("stopping", "median", {"warmup_epochs": 2}), curve) == 3  # 0.5, 0.2, 0.6
    assert stop_of(create("stopping", "median", {"min_trials": 4}), curve) is None


@pytest.mark.parametrize("name", ["successive-halving", "median"])
def test_curves_are_replayed_against_those_before_them_up_to_their_ends(name: str) -> None:
    strong, weak = accuracy_curve([0.5, 0.6, 0.7, 0.8]), accuracy_curve([0.1, 0.2, 0.3, 0.9])
    stopper = create("stopping", name, {"min_trials": 1})
    stops = [one.stopped_after for one in replay_curves(stopper, [strong, weak, strong, weak])]
    assert stops == ([None, 1, None, 1] if name == "successive-halving" else [None, 2, None, 2])


def test_the_reasons_show_the_losses_of_other_trials_as_such() -> None:
    earlier = ((-0.2, -0.2), (-0.3, -0.1))
    curve = planned(
        [point._replace(score=-0.5) for point in accuracy_curve([0.5])], num_epochs=9, best=None, earlier=earlier
    )
    assert create("stopping", "successive-halving").reason_to_stop(curve) == (
        "the metric is 0.5 after epoch 1, worse than 0.2333, which the best 1 in 3 of the earlier trials had there "
        "(2 came so far)"
    )
    median = create("stopping", "median", {"warmup_epochs": 0, "min_trials": 2})
    assert median.reason_to_stop(curve) == (
        "the best metric up to epoch 1 is 0.5, and half of the 2 earlier trials that came so far had 0.25 or better on "
        "average up to there"
    )
