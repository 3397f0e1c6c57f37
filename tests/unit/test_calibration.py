"""Temperature and calibration error."""

import math

import pytest
import torch

from trainers.results.calibration import NUM_BINS, calibrate, fit_temperature


def overconfident(count: int, *, factor: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `factor` times those of the distribution that the labels are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return factor * logits, labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_known_factor(factor: float) -> None:
    logits, labels = overconfident(20_000, factor=factor)
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=0.03)


def test_a_model_that_is_always_right_on_few_images_does_not_become_infinitely_sure() -> None:
    labels = torch.arange(20) % 4
    logits = 4.0 * torch.eye(4)[labels]
    temperature = fit_temperature(logits, labels)
    probability = float((logits / temperature).softmax(1).max())
    assert 0.05 < temperature < 1
    assert 1 - 1 / 20 < probability < 1 - 1 / 100


def test_the_temperature_lowers_the_calibration_error_on_other_images() -> None:
    temperature = fit_temperature(*overconfident(500, factor=4.0, seed=1))
    found = calibrate(*overconfident(4000, factor=4.0, seed=2), temperature=temperature)
    assert found.ece < 0.03 < 0.15 < found.ece_uncalibrated
    assert found.temperature == temperature


def test_the_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    # Three images at 60 % of which one is right, and one at 90 % that is right.
    logits = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9]]).log()
    found = calibrate(logits, torch.tensor([0, 1, 0, 1]), temperature=1.0)
    assert found.ece == pytest.approx(3 / 4 * (0.6 - 1 / 3) + 1 / 4 * 0.1, abs=1e-6)
    assert found.ece == found.ece_uncalibrated
    assert len(found.bins) == NUM_BINS
    assert sum(one.num_images for one in found.bins) == 4
    assert [one.num_images for one in found.bins if one.confidence is not None] == [3, 1]


def test_a_certain_answer_is_in_the_last_bin() -> None:
    found = calibrate(torch.tensor([[100.0, 0.0]]), torch.tensor([0]), temperature=1.0)
    assert found.bins[-1].num_images == 1
    assert found.bins[-1].high == 1.0
    assert math.isclose(found.ece, 0.0, abs_tol=1e-12)
