"""What every averaging method keeps, and what each of ours does."""

import pytest
import torch
from torch import Tensor

from plugins.averaging.arithmetic import weighted_sum
from plugins.averaging.ema import ema_weights
from plugins.averaging.lawa import average_latest
from plugins.protocols import Averager, PluginCard
from plugins.registry import PluginSettingsError, available, create


def checkpoints_of(values: list[float], dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    return [{"weight": torch.full((2, 3), value, dtype=dtype), "steps": torch.tensor(int(value))} for value in values]


@pytest.fixture(params=list(available("averaging")))
def averager(request: pytest.FixtureRequest) -> Averager:
    return create("averaging", request.param)


def test_it_has_a_card(averager: Averager) -> None:
    assert isinstance(averager.card, PluginCard)
    assert averager.card.source


def test_inputs_are_left_unchanged(averager: Averager) -> None:
    checkpoints = checkpoints_of([float(number) for number in range(12)])
    result = averager.average(checkpoints)
    result["weight"].add_(100)
    assert [checkpoint["weight"][0, 0].item() for checkpoint in checkpoints] == list(range(12))


def test_equal_checkpoints_average_to_themselves(averager: Averager) -> None:
    checkpoints = checkpoints_of([3.7] * averager.num_needed)
    assert torch.equal(averager.average(checkpoints)["weight"], checkpoints[0]["weight"])


def test_the_average_lies_among_the_checkpoints(averager: Averager) -> None:
    value = averager.average(checkpoints_of([float(number) for number in range(12)]))["weight"]
    assert 0 <= value.min() <= value.max() <= 11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_does_not_overflow(averager: Averager, dtype: torch.dtype) -> None:
    checkpoints = checkpoints_of([40_000.0] * averager.num_needed, dtype)
    value = averager.average(checkpoints)["weight"]
    assert value.dtype == dtype
    assert torch.equal(value, checkpoints[-1]["weight"])


def test_counters_are_the_newests(averager: Averager) -> None:
    steps = averager.average(checkpoints_of([float(number) for number in range(12)]))["steps"]
    assert steps.dtype == torch.int64
    assert steps.item() == 11


def test_older_checkpoints_than_needed_change_nothing(averager: Averager) -> None:
    newest = checkpoints_of([float(number) for number in range(averager.num_needed)])
    older = checkpoints_of([500.0, 600.0])
    assert torch.equal(averager.average(older + newest)["weight"], averager.average(newest)["weight"])


def test_too_few_checkpoints_are_refused(averager: Averager) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        averager.average(checkpoints_of([1.0] * (averager.num_needed - 1)))


@pytest.mark.parametrize("name", [name for name in available("averaging") if create("averaging", name).num_needed > 1])
def test_checkpoints_of_different_models_are_refused(name: str) -> None:
    averager = create("averaging", name)
    checkpoints = checkpoints_of([1.0] * averager.num_needed)
    checkpoints[-2] = {"other": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="one model"):
        averager.average(checkpoints)


def test_lawa_is_the_mean_of_the_newest() -> None:
    value = average_latest(checkpoints_of([100.0, 1.0, 2.0, 6.0]), window=3)["weight"]
    assert torch.equal(value, torch.full((2, 3), 3.0))


def test_lawa_counts_its_spacing_back_from_the_newest() -> None:
    value = average_latest(checkpoints_of([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), window=3, spacing=2)["weight"]
    assert torch.equal(value, torch.full((2, 3), 3.0))  # 1, 3 and 5


def test_lawa_refuses_to_reach_back_beyond_the_first_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"4 checkpoints saved, but got window=3, spacing=2, which reach back over 5"):
        average_latest(checkpoints_of([1.0] * 4), window=3, spacing=2)


def test_ema_is_its_recursion() -> None:
    values = [4.0, 1.0, 3.0, 9.0, 2.0]
    expected = values[0]
    for value in values[1:]:
        expected = 0.7 * expected + 0.3 * value
    ema = create("averaging", "ema", {"decay": 0.7, "window": 5})
    assert ema.average(checkpoints_of(values))["weight"][0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_ema_weights_add_up_to_one() -> None:
    assert sum(ema_weights(9, decay=0.8)) == pytest.approx(1.0)


def test_small_differences_survive_the_sum() -> None:
    tiny = 2.0**-20
    value = weighted_sum(checkpoints_of([1.0, 1.0 + tiny]), [0.5, 0.5])["weight"][0, 0].item()
    assert value == 1.0 + tiny / 2


@pytest.mark.parametrize(
    ("name", "settings"), [("lawa", {"window": 0}), ("lawa", {"spacing": 0}), ("ema", {"decay": 1})]
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, int]) -> None:
    with pytest.raises(PluginSettingsError, match=next(iter(settings))):
        create("averaging", name, settings)
