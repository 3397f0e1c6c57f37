"""Intervals of metrics over the choice of images."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from trainers.results.intervals import (
    bootstrap_estimate,
    estimate,
    stratified_resamples,
    wilson_interval,
)


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    hits = labels[logits.argmax(1) == labels]
    found, size = torch.bincount(hits, minlength=logits.shape[1]), torch.bincount(labels, minlength=logits.shape[1])
    return float((found / size).mean())  # every class has images


def simulated(rng: np.random.Generator, recalls: list[float], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Logits and labels of a model with given recalls; a wrong answer is the next class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    right = rng.random(len(labels)) < np.repeat(recalls, sizes)
    answers = np.where(right, labels, (labels + 1) % len(sizes))
    return torch.from_numpy(np.eye(len(sizes), dtype=np.float32)[answers]), torch.from_numpy(labels)


@pytest.mark.parametrize(
    ("successes", "total"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 40), (350, 360), (5000, 10000)]
)
def test_wilsons_interval_equals_that_of_scipy(successes: int, total: int) -> None:
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    assert wilson_interval(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilsons_interval_does_not_collapse_without_errors() -> None:
    low, high = wilson_interval(40, 40)
    assert (round(low, 3), high) == (0.912, 1.0)


def test_a_resample_keeps_the_number_of_images_of_each_class() -> None:
    labels = torch.tensor([0, 2, 2, 0, 2, 1])
    rows = stratified_resamples(labels, 50, seed=3)
    assert rows.shape == (50, 6)
    assert all(torch.bincount(labels[one]).tolist() == [2, 1, 3] for one in rows)
    assert torch.equal(rows, stratified_resamples(labels, 50, seed=3))
    assert not torch.equal(rows, stratified_resamples(labels, 50, seed=4))


@pytest.mark.slow
def test_a_bootstrap_interval_covers_the_true_value_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    recalls, sizes = [0.9, 0.75, 0.6], [60, 40, 30]
    found = [bootstrap_estimate(balanced_accuracy, *simulated(rng, recalls, sizes)) for _ in range(60)]
    covered = sum(one.low <= 0.75 <= one.high for one in found if one.low is not None and one.high is not None)
    assert covered >= 51  # 57 expected; 51 or fewer have a probability below 2 % if the coverage is 95 %


def test_an_interval_that_a_bootstrap_cannot_give_is_left_out_with_the_reason() -> None:
    logits, labels = simulated(np.random.default_rng(0), [1.0, 1.0], [5, 5])
    found = bootstrap_estimate(balanced_accuracy, logits, labels)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert "same in all bootstrap resamples" in found.method


def test_accuracy_has_wilsons_interval_and_other_metrics_a_bootstraps() -> None:
    logits, labels = simulated(np.random.default_rng(1), [0.8, 0.7], [50, 50])
    accuracy = estimate("accuracy", balanced_accuracy, logits, labels)
    other = estimate("balanced-accuracy", balanced_accuracy, logits, labels)
    right = int((logits.argmax(1) == labels).sum())
    assert (accuracy.low, accuracy.high) == wilson_interval(right, 100)
    assert accuracy.method == "Wilson"
    assert "stratified" in other.method
    assert other.low is not None
    assert other.high is not None
    assert other.low < other.value < other.high
