"""What every stopping criterion keeps, and what each of ours does."""

from collections.abc import Sequence

import pytest

from plugins.protocols import CurvePoint, PluginCard, Stopper
from plugins.registry import PluginSettingsError, available, create


def curve_of(losses: Sequence[float]) -> list[CurvePoint]:
    return [
        CurvePoint(epoch=epoch, train_loss=1 / epoch, val_loss=loss, val_accuracy=1 / (1 + loss))
        for epoch, loss in enumerate(losses, start=1)
    ]


def first_stop(stopper: Stopper, losses: Sequence[float]) -> int | None:
    """The epoch after which the criterion stops a training."""
    curve = curve_of(losses)
    return next((end for end in range(1, len(curve) + 1) if stopper.reason_to_stop(curve[:end])), None)


@pytest.fixture(params=list(available("stopping")))
def stopper(request: pytest.FixtureRequest) -> Stopper:
    return create("stopping", request.param)


def test_it_has_a_card(stopper: Stopper) -> None:
    assert isinstance(stopper.card, PluginCard)
    assert stopper.card.source
    assert stopper.card.cost


def test_one_epoch_is_never_enough(stopper: Stopper) -> None:
    assert stopper.reason_to_stop(curve_of([0.7])) is None


def test_an_empty_curve_is_no_reason(stopper: Stopper) -> None:
    assert stopper.reason_to_stop([]) is None


def test_a_loss_that_always_falls_goes_on(stopper: Stopper) -> None:
    assert first_stop(stopper, [1 / (epoch + 1) for epoch in range(60)]) is None


def test_a_loss_that_always_rises_stops_with_a_reason_to_read(stopper: Stopper) -> None:
    losses = [0.1 * 1.2**epoch for epoch in range(60)]
    end = first_stop(stopper, losses)
    assert end is not None
    reason = stopper.reason_to_stop(curve_of(losses)[:end])
    assert isinstance(reason, str)
    assert "validation loss" in reason


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


def test_generalization_loss_above_a_minimum_of_zero_is_infinite() -> None:
    criterion = create("stopping", "generalization-loss", {"threshold": 1e6})
    assert first_stop(criterion, [0.5, 0.0, 0.0, 1e-9]) == 4


def test_successive_rises_need_to_be_successive() -> None:
    criterion = create("stopping", "successive-rises", {"rises": 2})
    assert first_stop(criterion, [0.5, 0.6, 0.6, 0.7, 0.6, 0.7, 0.8]) == 7


def test_successive_rises_compare_strip_ends() -> None:
    criterion = create("stopping", "successive-rises", {"strip": 2, "rises": 2})
    assert first_stop(criterion, [9.0, 0.5, 0.1, 0.6, 0.1, 0.7, 9.0]) == 6


@pytest.mark.parametrize(
    ("name", "settings"),
    [("patience", {"epochs": 0}), ("generalization-loss", {"threshold": 0}), ("successive-rises", {"strip": 0})],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, int]) -> None:
    with pytest.raises(PluginSettingsError, match=next(iter(settings))):
        create("stopping", name, settings)
