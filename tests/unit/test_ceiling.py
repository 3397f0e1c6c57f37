"""The tau of a perfect score: against simulated trainings, and trainings that differ by chance alone."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.evaluation.ceiling import ceiling_of_images, ceiling_of_seeds


def study(rng, *, num_topologies, num_seeds, spread, noise):
    true = spread * rng.normal(size=num_topologies)
    return true, true[:, None] + noise * rng.normal(size=(num_topologies, num_seeds))


@pytest.mark.parametrize(("num_seeds", "noise"), [(2, 0.5), (3, 1.0), (5, 2.0)])
def test_the_ceiling_is_the_tau_of_the_true_ranking(num_seeds, noise) -> None:
    rng = np.random.default_rng(0)
    estimates, taus = [], []
    for _ in range(40):
        true, seeds = study(rng, num_topologies=60, num_seeds=num_seeds, spread=1.0, noise=noise)
        estimates.append(ceiling_of_seeds(seeds.tolist(), confidence=0.95).tau.value)
        taus.append(stats.kendalltau(true, seeds.mean(1)).statistic)
    assert np.mean(estimates) == pytest.approx(np.mean(taus), abs=0.03)


def test_the_interval_contains_the_true_reliability_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        _, seeds = study(rng, num_topologies=20, num_seeds=3, spread=1.0, noise=1.0)
        found = ceiling_of_seeds(seeds.tolist(), confidence=0.9).reliability
        held += found.low <= 0.75 <= found.high
    assert 166 <= held <= 194  # three standard errors around 180


def test_trainings_that_differ_by_chance_alone_are_told_so() -> None:
    rng, told = np.random.default_rng(2), 0
    for _ in range(100):
        _, seeds = study(rng, num_topologies=30, num_seeds=2, spread=0.0, noise=1.0)
        told += ceiling_of_seeds(seeds.tolist(), confidence=0.95).may_be_chance
    assert told >= 93  # 97.5 are expected
    assert ceiling_of_seeds([[0.5, 0.5], [0.5, 0.5]], confidence=0.95).may_be_chance
    assert not ceiling_of_seeds([[0.4, 0.4], [0.6, 0.6]], confidence=0.95).may_be_chance


def test_with_one_seed_the_number_of_images_sets_the_ceiling() -> None:
    rng = np.random.default_rng(3)
    true = 0.6 + 0.02 * rng.normal(size=50)
    few, many = (ceiling_of_images(rng.binomial(count, true) / count, count, confidence=0.95) for count in (50, 10_000))
    assert few.may_be_chance
    assert many.reliability.value == pytest.approx(0.94, abs=0.04)
    assert (many.source, many.num_seeds) == ("images", 1)
    taus = [stats.kendalltau(true, rng.binomial(10_000, true)).statistic for _ in range(20)]
    assert many.tau.value == pytest.approx(np.mean(taus), abs=0.05)


def test_topologies_may_have_different_numbers_of_trainings() -> None:
    found = ceiling_of_seeds([[0.1, 0.12], [0.5], [0.9, 0.88, 0.91]], confidence=0.95)
    assert found.num_seeds == 1
    assert found.reliability.value > 0.98
    assert ceiling_of_seeds([[0.1], [0.5]], confidence=0.95) is None
    assert ceiling_of_seeds([[0.1, 0.2]], confidence=0.95) is None
