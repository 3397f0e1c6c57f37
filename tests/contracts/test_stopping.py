"""Rules for every stopping criterion, and the behaviour of ours."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from plugins.protocols import (
    CLASS_SIGNALS,
    CurvePoint,
    PluginCard,
    Signal,
    Stopper,
    WaitsForEpochs,
    class_key,
    earliest_stop,
    needed_signals,
)
from plugins.registry import PluginSettingsError, available, create

NUM_CLASSES = 3


def with_classes(signals: dict[str, float]) -> dict[str, float]:
    """Signals with the training accuracy of each class, which is that of all images."""
    accuracy = signals[Signal.TRAINING_ACCURACY]
    return signals | {class_key(signal, number): accuracy for signal in CLASS_SIGNALS for number in range(NUM_CLASSES)}


def curve_of(losses: Sequence[float], signals: Sequence[dict[str, float]] | None = None) -> list[CurvePoint]:
    """A curve with these validation losses; by default, all signals are constant."""
    constant = with_classes(dict.fromkeys(Signal, 0.5))
    return [
        CurvePoint(
            epoch=epoch,
            train_loss=1 / epoch,
            val_loss=loss,
            val_accuracy=1 / (1 + loss),
            signals=constant if signals is None else signals[epoch - 1],
            num_epochs=len(losses),
        )
        for epoch, loss in enumerate(losses, start=1)
    ]


def learning(num_epochs: int = 60) -> list[CurvePoint]:
    """A training that gets steadily better, after weaker ones."""
    shares = [epoch / (num_epochs + 1) for epoch in range(1, num_epochs + 1)]
    signals = [
        with_classes(
            {
                **dict.fromkeys(Signal, 1 - share),  # falls
                Signal.TRAINING_ACCURACY: share,
                Signal.NEURAL_PERSISTENCE: share,
                Signal.EVIDENCE: -1 - share,
            }
        )
        for share in shares
    ]
    curve = curve_of([1 - share for share in shares], signals)
    return [point._replace(earlier=((0.1,) * num_epochs,) * 3) for point in curve]


def memorizing(num_epochs: int = 60) -> list[CurvePoint]:
    """A training that learns for a few epochs and then only memorises its images, after better ones."""
    points, better = [], ((0.95,) * num_epochs,) * 3
    for epoch in range(1, num_epochs + 1):
        late = max(0, epoch - 5)
        loss = 0.5 / epoch + 0.1 * 1.05**late
        signals = with_classes(
            {
                **dict.fromkeys(Signal, 0.5),
                Signal.TRAINING_ACCURACY: 1 - math.exp(-epoch / 3),
                Signal.CHANGED_TRAINING_PREDICTIONS: 1 / epoch + 0.1 * late,
                Signal.NEURAL_PERSISTENCE: min(epoch, 5) / 10,
                Signal.EVIDENCE: late - 3.0,
                Signal.GRADIENT_DISPARITY: 1 / epoch + late,
            }
        )
        point = CurvePoint(epoch, 0.5 + 0.1 / epoch, loss, 1 / (1 + loss), signals, num_epochs=num_epochs)
        points.append(point._replace(earlier=better))
    return points


def first_stop(stopper: Stopper, losses: Sequence[float]) -> int | None:
    """The epoch after which the criterion stops a training."""
    return stop_of(stopper, curve_of(losses))


def stop_of(stopper: Stopper, curve: Sequence[CurvePoint]) -> int | None:
    return next((end for end in range(1, len(curve) + 1) if stopper.reason_to_stop(curve[:end])), None)


@pytest.fixture(params=list(available("stopping")))
def stopper(request: pytest.FixtureRequest) -> Stopper:
    return create("stopping", request.param)


def test_it_has_a_card(stopper: Stopper) -> None:
    assert isinstance(stopper.card, PluginCard)
    assert stopper.card.source
    assert stopper.card.cost


def test_the_signals_it_needs_are_signals(stopper: Stopper) -> None:
    assert all(isinstance(signal, Signal) for signal in needed_signals(stopper))


def test_one_epoch_is_never_enough(stopper: Stopper) -> None:
    assert stopper.reason_to_stop(curve_of([0.7])) is None


def test_an_empty_curve_is_no_reason(stopper: Stopper) -> None:
    assert stopper.reason_to_stop([]) is None


def test_a_training_that_gets_better_goes_on(stopper: Stopper) -> None:
    assert stop_of(stopper, learning()) is None


def test_a_training_that_only_memorises_stops_with_a_reason_to_read(stopper: Stopper) -> None:
    curve = memorizing()
    end = stop_of(stopper, curve)
    assert end is not None
    assert end < len(curve)
    reason = stopper.reason_to_stop(curve[:end])
    assert isinstance(reason, str)
    assert len(reason.split()) > 8  # a sentence
    assert re.search(r"\d", reason)  # with the numbers that decided
    assert "{" not in reason


FIRST_VALUES = {
    "rising": lambda place, _: 1.0 + place,
    "a jump at the end": lambda place, count: {0: 3.0, count - 1: 9.0}.get(place, 1.0),
    "saturated": lambda place, _: 0.9 if place == 0 else 0.95,
    "nothing": lambda *_: 0.0,
}
"""Ways in which all numbers of a training can begin, as functions of the place and the number of epochs."""


def beginning(values: Sequence[float]) -> list[CurvePoint]:
    """A training in which all numbers but the training loss take these values, after better trainings."""
    points = []
    for epoch, value in enumerate(values, start=1):
        point = CurvePoint(epoch, 0.5, value, 0.1, with_classes(dict.fromkeys(Signal, value)), num_epochs=100)
        points.append(point._replace(best=0.95, earlier=((0.95,) * 100,) * 3))
    return points


SETTINGS = {
    "patience": {"epochs": 2},
    "plateau": {"warmup_epochs": 3, "patience": 2},
    "successive-rises": {"strip": 2, "rises": 2},
    "neural-persistence": {"burn_in": 2},
    "label-wave": {"window": 2},
    "gradient-disparity": {"increases": 1},
    "evidence": {"window": 1},
    "median": {"warmup_epochs": 2},
}


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in available("stopping")), *SETTINGS.items()], ids=str
)
def test_the_first_epoch_after_which_it_can_stop_is_the_one_it_tells(name: str, settings: dict[str, Any]) -> None:
    stopper = create("stopping", name, settings)
    first = earliest_stop(stopper)
    stops = []
    for value in FIRST_VALUES.values():
        for count in range(1, first + 1):  # a jump comes after each number of epochs
            stops.append(stop_of(stopper, beginning([value(place, count) for place in range(count)])))
    found = [stop for stop in stops if stop is not None]
    assert all(stop >= first for stop in found)
    if isinstance(stopper, WaitsForEpochs):
        assert found


def test_a_signal_that_was_not_recorded_is_named(stopper: Stopper) -> None:
    curve = [point._replace(signals={}) for point in memorizing()]
    if not needed_signals(stopper):
        assert stop_of(stopper, curve) is not None
        return
    (signal,) = needed_signals(stopper)
    with pytest.raises(ValueError, match=f"must contain the signal {signal.value}, .* train again"):
        stop_of(stopper, curve)


def test_the_curve_is_left_unchanged(stopper: Stopper) -> None:
    curve = memorizing(12)
    for end in range(1, len(curve) + 1):
        stopper.reason_to_stop(curve[:end])
    assert curve == memorizing(12)


def test_the_same_curve_gets_the_same_answer(stopper: Stopper) -> None:
    curve = curve_of([0.5, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1])
    assert stopper.reason_to_stop(curve) == stopper.reason_to_stop(curve)


def test_zero_losses_are_no_error(stopper: Stopper) -> None:
    for end in range(1, 5):
        stopper.reason_to_stop(curve_of([0.5, 0.0, 0.0, 0.3])[:end])


def test_patience_counts_a_tie_as_no_improvement() -> None:
    assert first_stop(create("stopping", "patience", {"epochs": 3}), [0.5, 0.4, 0.4, 0.4, 0.4, 0.1]) == 5


def test_patience_starts_again_after_an_improvement() -> None:
    patience = create("stopping", "patience", {"epochs": 2})
    assert first_stop(patience, [0.5, 0.6, 0.4, 0.5, 0.3, 0.4, 0.4]) == 7


def test_patience_asks_for_more_than_min_delta() -> None:
    patience = create("stopping", "patience", {"epochs": 2, "min_delta": 0.1})
    assert first_stop(patience, [1.0, 0.95, 0.92, 0.5]) == 3


def test_generalization_loss_stops_above_its_threshold_only() -> None:
    criterion = create("stopping", "generalization-loss", {"threshold": 5})
    assert first_stop(criterion, [1.0, 1.04, 1.049, 1.06, 0.5]) == 4


def test_generalization_loss_is_the_excess_over_the_lowest_loss_in_percent() -> None:
    excess = 100 * (0.7319 / 0.6571 - 1)
    for threshold, expected in ((excess * (1 - 1e-6), 3), (excess * (1 + 1e-6), None)):
        criterion = create("stopping", "generalization-loss", {"threshold": threshold})
        assert first_stop(criterion, [0.9, 0.6571, 0.7319]) == expected


def test_generalization_loss_above_a_minimum_of_zero_is_infinite() -> None:
    criterion = create("stopping", "generalization-loss", {"threshold": 1e6})
    assert first_stop(criterion, [0.5, 0.0, 0.0, 1e-9]) == 4


def test_successive_rises_need_to_be_successive() -> None:
    criterion = create("stopping", "successive-rises", {"rises": 2})
    assert first_stop(criterion, [0.5, 0.6, 0.6, 0.7, 0.6, 0.7, 0.8]) == 7


def test_successive_rises_compare_strip_ends() -> None:
    criterion = create("stopping", "successive-rises", {"strip": 2, "rises": 2})
    assert first_stop(criterion, [9.0, 0.5, 0.1, 0.6, 0.1, 0.7, 9.0]) == 6


def plateau(**settings: Any) -> Stopper:
    return create("stopping", "plateau", settings)


def signal_curve(values: Sequence[float | None], name: str = "gradient_noise") -> list[CurvePoint]:
    """A curve whose loss always falls, with a signal; `None` where the signal is missing."""
    return [
        CurvePoint(epoch, 1 / epoch, 1 / epoch, 0.5, {} if value is None else {name: value})
        for epoch, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize("losses", [[0.5, 0.4, 0.4, 0.4, 0.4, 0.1], [0.5, 0.6, 0.4, 0.5, 0.3, 0.4, 0.4, 0.2, 0.9]])
@pytest.mark.parametrize(("patience", "delta"), [(2, 0.0), (3, 0.0), (2, 0.15)])
def test_a_plateau_of_the_validation_loss_is_patience(losses: list[float], patience: int, delta: float) -> None:
    expected = first_stop(create("stopping", "patience", {"epochs": patience, "min_delta": delta}), losses)
    assert first_stop(plateau(patience=patience, min_delta=delta), losses) == expected


def test_a_plateau_of_the_accuracy_waits_for_a_rise() -> None:
    curve = [CurvePoint(epoch, 1.0, epoch, accuracy) for epoch, accuracy in enumerate([0.1, 0.5, 0.6, 0.6, 0.5], 1)]
    stopper = plateau(signal="val_accuracy", patience=2)
    assert stop_of(stopper, curve) == 5
    reason = stopper.reason_to_stop(curve)
    assert reason == "the validation accuracy has not risen above 0.6 (epoch 3) for 2 epochs; patience is 2"


@pytest.mark.parametrize(("mode", "expected"), [("auto", None), ("min", None), ("max", 3)])
def test_the_mode_says_which_way_a_signal_improves(mode: str, expected: int | None) -> None:
    stopper = plateau(signal="gradient_noise", patience=2, mode=mode)
    assert stop_of(stopper, signal_curve([5.0, 4.0, 3.0, 2.0, 1.0])) == expected


def test_a_relative_delta_is_a_fraction_of_the_best() -> None:
    curve = signal_curve([100.0, 95.0, 85.0, 84.0, 80.0, 79.0])
    stopper = plateau(signal="gradient_noise", patience=2, min_delta=0.1, relative=True)
    assert stop_of(stopper, curve) == 5
    assert stopper.reason_to_stop(curve[:5]) == (
        "the gradient noise has not fallen more than 10 % below 85 (epoch 3) for 2 epochs; patience is 2"
    )
    assert stop_of(plateau(signal="gradient_noise", patience=2, min_delta=0.1), curve) is None


def test_epochs_of_warm_up_are_not_looked_at() -> None:
    losses = [0.1, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6]
    assert first_stop(plateau(patience=2), losses) == 3
    assert first_stop(plateau(patience=2, warmup_epochs=2), losses) == 7


def test_a_plateau_needs_the_signal_it_looks_at() -> None:
    assert needed_signals(plateau(signal="dead_units")) == {Signal.DEAD_UNITS}
    assert needed_signals(plateau(signal="train_loss")) == frozenset()


def test_a_signal_may_be_undefined_in_some_epochs_but_not_in_all() -> None:
    stopper = plateau(signal="gradient_noise", patience=2)
    assert stop_of(stopper, signal_curve([None, None, 1.0, 1.0, 1.0])) == 5
    assert stop_of(stopper, signal_curve([1.0, 1.0, None, 1.0])) == 4
    with pytest.raises(ValueError, match="must contain the signal gradient_noise, but epoch 3 contains no signals"):
        stopper.reason_to_stop(signal_curve([None, None, None]))


def test_a_plateau_cannot_watch_a_signal_of_each_class() -> None:
    with pytest.raises(PluginSettingsError, match="but got 'class_training_accuracy'"):
        plateau(signal="class_training_accuracy")


def test_a_value_that_is_not_finite_is_no_improvement() -> None:
    stopper = plateau(signal="gradient_noise", patience=2)
    assert stop_of(stopper, signal_curve([1.0, math.nan, -math.inf, 0.5])) == 3
    assert stop_of(stopper, signal_curve([math.nan, 1.0, 0.9, 0.8])) is None


def test_an_unknown_signal_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PluginSettingsError, match=r"must be one of train_loss, .* but got 'gradient_nose'.*_noise'"):
        plateau(signal="gradient_nose")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("patience", {"epochs": 0}),
        ("generalization-loss", {"threshold": 0}),
        ("successive-rises", {"strip": 0}),
        ("plateau", {"patience": 0}),
        ("progress-quotient", {"strip": 1}),
        ("neural-persistence", {"patience": 0}),
        ("evidence", {"window": 0}),
        ("gradient-disparity", {"increases": 0}),
        ("label-wave", {"window": 0}),
        ("memorization-onset", {"share": 0}),
        ("curve-extrapolation", {"min_epochs": 2}),
        ("successive-halving", {"reduction_factor": 1}),
        ("median", {"min_trials": 0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, int]) -> None:
    with pytest.raises(PluginSettingsError, match=next(iter(settings))):
        create("stopping", name, settings)
