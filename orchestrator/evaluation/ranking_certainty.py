"""How likely the best of several models is really the best, although all were judged by the same few images."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
_REACH = 4.0
"""A model takes part if it lies at most this many standard errors of the difference behind the best."""
_NUM_SPREADS = 64
_SPREADS = (0.1, 10.0)
"""Standard deviations of the true values that are tried, as multiples of the error of one value."""
_NUM_DRAWS = 4000


def probability_of_being_best(scores: Scores, covariance: Scores, *, seed: int) -> float:
    """The probability that the model with the highest score has the highest true value.

    The highest of several scores was also lucky. So the true values are not assumed to be anything, but to scatter
    around a common mean with an unknown spread: if the scores differ no more than their errors explain, the models may
    be equal, and each is the best with about the same probability. The mean has a flat prior, the spread a log-uniform
    one, and both are integrated over. Models that are clearly worse are left out first, so that they do not widen the
    spread of the others.

    Args:
        scores: Scores (k,), higher is better.
        covariance: Covariance (k, k) of their errors, over the choice of images. Scores on the same images are
            correlated.
        seed: Seed of the random draws.

    Source: the normal model of Gelman et al. 2013, Bayesian Data Analysis, section 5.4, with correlated errors.
    """
    best = int(np.argmax(scores))
    near = _within_reach(scores, covariance, best)
    if near.sum() == 1:
        return 1.0
    best, scores, covariance = int(near[:best].sum()), scores[near], covariance[np.ix_(near, near)]
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0.0)
    ones, values = axes.sum(0), axes.T @ scores
    spreads = np.geomspace(*_SPREADS, _NUM_SPREADS) * _error_of_one(covariance)
    weights = _likelihoods(spreads, variances, ones, values)
    generator = np.random.default_rng(seed)
    hits = 0
    for spread, count in zip(spreads, generator.multinomial(_NUM_DRAWS, weights), strict=True):
        total = variances + spread**2
        precision = float((ones**2 / total).sum())
        centre = float((ones * values / total).sum()) / precision + generator.standard_normal(count) / precision**0.5
        shrunk = centre[:, None] * ones + spread**2 / total * (values - centre[:, None] * ones)
        left = np.sqrt(np.maximum(spread**2 - spread**4 / total, 0.0))
        drawn = (shrunk + left * generator.standard_normal((count, len(scores)))) @ axes.T
        hits += int((drawn.argmax(1) == best).sum())
    return hits / _NUM_DRAWS


def covariance_of_hits(hits: NDArray[np.bool_]) -> Scores:
    """Covariance (k, k) of the accuracies of several models on the same images.

    Args:
        hits: Whether each image (n,) was classified correctly by each model, shape (n, k).
    """
    num_images = len(hits)
    found = np.atleast_2d(np.cov(hits.T.astype(np.float64), bias=True)) / num_images
    return found + smallest_error(hits.shape[1], num_images)


def covariance_of_counts(accuracies: Scores, num_images: int) -> Scores:
    """The same from the accuracies alone, as if each model had been judged by its own images."""
    errors = accuracies * (1 - accuracies) / num_images
    return np.diag(errors) + smallest_error(len(accuracies), num_images)


def smallest_error(num_models: int, num_images: int) -> Scores:
    """An error of one image for each model: without it, a model without mistakes would seem to be known exactly."""
    return np.eye(num_models) / num_images**2


def _within_reach(scores: Scores, covariance: Scores, best: int) -> NDArray[np.bool_]:
    errors = np.diag(covariance) + covariance[best, best] - 2 * covariance[best]
    found: NDArray[np.bool_] = scores[best] - scores <= _REACH * np.sqrt(np.maximum(errors, 0.0))
    return found


def _error_of_one(covariance: Scores) -> float:
    """The typical standard error of one score without what all scores have in common."""
    diagonal = np.diag(covariance)
    differences = diagonal[:, None] + diagonal[None] - 2 * covariance
    others = ~np.eye(len(covariance), dtype=bool)
    return float(np.sqrt(max(float(differences[others].mean()) / 2, 1e-24)))


def _likelihoods(spreads: Scores, variances: Scores, ones: Scores, values: Scores) -> Scores:
    """The probability of each spread, on the axes on which the errors are independent."""
    total = variances + spreads[:, None] ** 2
    precision = (ones**2 / total).sum(1)
    centre = (ones * values / total).sum(1) / precision
    misfit = (values**2 / total).sum(1) - centre**2 * precision
    logs = -0.5 * (np.log(total).sum(1) + np.log(precision) + misfit)
    found: Scores = np.exp(logs - logs.max())
    found /= found.sum()
    return found
