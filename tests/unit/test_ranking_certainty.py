"""The probability that the best of several models is really the best."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from orchestrator.evaluation.ranking_certainty import (
    covariance_of_counts,
    covariance_of_hits,
    probability_of_being_best,
)

Draw = Callable[[np.random.Generator], NDArray[np.float64]]
SEARCHES: dict[str, Draw] = {
    "a search whose trials differ": lambda rng: rng.normal(0.9, 0.02, 6),
    "a search with failures": lambda rng: np.where(
        rng.random(8) < 0.4, rng.uniform(0.1, 0.7, 8), rng.normal(0.9, 0.01, 8)
    ),
    "a search near its ceiling": lambda rng: 0.95 - rng.exponential(0.03, 6),
}


def judged(rng: np.random.Generator, accuracies: NDArray[np.float64], num_images: int) -> NDArray[np.bool_]:
    """Hits of models with these true accuracies on common images, some of which are hard for all."""
    difficulty = rng.standard_normal(num_images)[:, None]
    noise = rng.standard_normal((num_images, len(accuracies)))
    return 0.7**0.5 * difficulty + 0.3**0.5 * noise < norm.ppf(np.clip(accuracies, 0.02, 0.999))


def stated_and_true(draw: Draw, *, searches: int, paired: bool, seed: int) -> NDArray[np.float64]:
    """For each simulated search, the stated probability and whether the champion was the best."""
    rng, found = np.random.default_rng(seed), []
    for number in range(searches):
        accuracies = draw(rng)
        hits = judged(rng, accuracies, 200)
        scores = hits.mean(0) + 1e-9 * rng.random(len(accuracies))  # ties are broken at random
        covariance = covariance_of_hits(hits) if paired else covariance_of_counts(hits.mean(0), 200)
        stated = probability_of_being_best(scores, covariance, seed=number)
        found.append((stated, accuracies[int(scores.argmax())] == accuracies.max()))
    return np.array(found, dtype=np.float64)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_stated_probability_is_the_frequency_of_being_right(name: str) -> None:
    found = stated_and_true(SEARCHES[name], searches=250, paired=True, seed=0)
    error = found[:, 0].mean() - found[:, 1].mean()
    assert abs(error) < 0.1  # three standard errors of a frequency over 250 searches
    sure = found[found[:, 0] > 0.75]
    unsure = found[found[:, 0] < 0.5]
    assert sure[:, 1].mean() > sure[:, 0].mean() - 0.15
    assert sure[:, 1].mean() > unsure[:, 1].mean() + 0.2


def test_equal_models_are_hardly_ever_called_the_best() -> None:
    found = stated_and_true(lambda _: np.full(8, 0.9), searches=100, paired=True, seed=1)[:, 0]
    assert found.mean() < 0.35
    assert (found > 0.8).mean() < 0.05


def test_counts_alone_are_more_careful_than_pairs() -> None:
    draw = SEARCHES["a search whose trials differ"]
    paired, counted = (stated_and_true(draw, searches=100, paired=one, seed=2)[:, 0].mean() for one in (True, False))
    assert counted < paired


def test_a_clear_winner_is_certain() -> None:
    scores = np.array([0.99, 0.5, 0.6])
    assert probability_of_being_best(scores, covariance_of_counts(scores, 1000), seed=0) == 1.0


def test_models_without_mistakes_are_not_known_exactly() -> None:
    hits = np.ones((50, 2), dtype=bool)
    assert probability_of_being_best(hits.mean(0), covariance_of_hits(hits), seed=0) == pytest.approx(0.5, abs=0.05)


def test_the_same_seed_gives_the_same_probability() -> None:
    scores = np.array([0.90, 0.91, 0.92])
    first, second = (probability_of_being_best(scores, covariance_of_counts(scores, 300), seed=4) for _ in range(2))
    assert first == second
    assert 0.34 < first < 0.9


def test_the_order_of_the_models_does_not_matter() -> None:
    scores = np.array([0.90, 0.88, 0.93, 0.40])
    there = probability_of_being_best(scores, covariance_of_counts(scores, 300), seed=0)
    back = probability_of_being_best(scores[::-1].copy(), covariance_of_counts(scores[::-1], 300), seed=0)
    assert there == pytest.approx(back, abs=0.04)
