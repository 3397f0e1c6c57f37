"""Marks for many comparisons at once: how often they are wrong, and what they find."""

import numpy as np
import pytest

from orchestrator.evaluation.rank_statistics import kendall_tau, resample_weights
from orchestrator.evaluation.step_down import shown_above_zero

LEVEL = 0.025


def family(rng, num_points, *, num_scores=24, num_baselines=3, accuracy=None):
    """Replicates of every tau, then of every difference of a score from a baseline; scores share much with each."""
    common = rng.normal(size=num_points)
    scores = [0.6 * common + 0.8 * rng.normal(size=num_points) for _ in range(num_scores + num_baselines)]
    truth = rng.normal(size=num_points) if accuracy is None else accuracy(common)
    weights = resample_weights(num_points, resamples=200, seed=int(rng.integers(2**31)))
    taus = np.stack([kendall_tau(weights, score, truth) for score in scores])
    gaps = [taus[place] - taus[base] for place in range(num_baselines, len(taus)) for base in range(num_baselines)]
    return np.concatenate([taus, np.stack(gaps)])


def any_mark(replicates, *, num_scores=24, num_baselines=3):
    """Whether a score is marked: its tau and its difference from a baseline are both shown to be above zero."""
    shown = shown_above_zero(replicates, level=LEVEL)
    own = shown[num_baselines : num_baselines + num_scores]
    gaps = shown[num_baselines + num_scores :].reshape(num_scores, num_baselines)
    return bool((own & gaps.any(1)).any())


@pytest.mark.parametrize("num_points", [8, 30])
def test_accuracies_of_pure_noise_give_a_mark_in_at_most_5_percent_of_studies(num_points) -> None:
    rng = np.random.default_rng(num_points)
    assert sum(any_mark(family(rng, num_points)) for _ in range(60)) <= 3


def test_scores_as_good_as_the_baselines_are_seldom_marked() -> None:
    rng = np.random.default_rng(0)

    def follows(common):
        return common + 0.7 * rng.normal(size=len(common))

    marked = sum(any_mark(family(rng, 30, accuracy=follows)) for _ in range(60))
    assert marked <= 3


def test_a_statistic_far_above_zero_is_found_among_many_that_are_not() -> None:
    rng = np.random.default_rng(1)
    values = np.array([0.0] * 30 + [5.0])
    replicates = np.concatenate([values[:, None], values[:, None] + rng.normal(size=(31, 500))], axis=1)
    assert shown_above_zero(replicates, level=LEVEL).tolist() == [False] * 30 + [True]


def test_later_steps_have_a_lower_bar() -> None:
    """Once the large statistics are taken out, the bar for the last is that of a single comparison."""
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(60, 2000))
    values = np.array([10.0] * 59 + [2.6])
    replicates = np.concatenate([values[:, None], values[:, None] + draws], axis=1)
    together = shown_above_zero(replicates, level=LEVEL)
    assert together.all()
    first_bar = np.quantile(draws.max(0), 1 - LEVEL)
    assert first_bar > 2.6  # in a single step, the last would have been missed


def test_undefined_and_constant_statistics_are_handled() -> None:
    undefined = np.full(101, np.nan)
    equal, certain = np.zeros(101), np.ones(101)
    mostly = np.concatenate([[1.0], np.full(60, np.nan), np.ones(40)])
    replicates = np.stack([undefined, equal, certain, mostly])
    assert shown_above_zero(replicates, level=LEVEL).tolist() == [False, False, True, False]
    assert shown_above_zero(replicates[:1], level=LEVEL).tolist() == [False]
