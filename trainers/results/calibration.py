"""Calibration of probabilities: the temperature of a model, its reliability, and its expected calibration error."""

import math

import torch
from torch import Tensor

from trainers.results.model_report import Calibration, ReliabilityBin
from trainers.training.evaluation import class_probabilities

NUM_BINS = 15
_LIMITS = (math.log(0.05), math.log(20.0))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that gives the labels the highest likelihood; between 0.05 and 20.

    As in Platt's method, the targets are not quite 0 and 1: an image keeps its class with a weight of N / (N + 1), and
    the rest is spread over all classes. Without this, a model that is right on all of a few images would become
    infinitely sure.

    Args:
        logits: Logits (N, C) of images that the model was not trained on, N at least 1.
        labels: Labels (N,).

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; Platt 1999, section 2.2.
    """
    from scipy.optimize import minimize_scalar

    values = logits.cpu().double()
    rest = 1 / (len(labels) + 1)
    own = values.gather(1, labels.cpu()[:, None])[:, 0]
    target = (1 - rest) * own + rest * values.mean(1)

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(((values * scale).logsumexp(1) - target * scale).mean())

    found = minimize_scalar(loss, bounds=_LIMITS, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def calibrate(logits: Tensor, labels: Tensor, *, temperature: float) -> Calibration:
    """Reliability and expected calibration error of the largest probabilities, in 15 bins of equal width.

    Args:
        logits: Logits (N, C), N at least 1.
        labels: Labels (N,).
        temperature: The model's temperature.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    bins = _bins(logits, labels, temperature)
    return Calibration(
        temperature=temperature,
        ece=_error(bins, len(labels)),
        ece_uncalibrated=_error(_bins(logits, labels, 1.0), len(labels)),
        bins=bins,
    )


def _bins(logits: Tensor, labels: Tensor, temperature: float) -> tuple[ReliabilityBin, ...]:
    confidence, prediction = class_probabilities(logits.double(), temperature).max(1)
    is_right = (prediction == labels).double()
    places = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    counts = torch.bincount(places, minlength=NUM_BINS).tolist()
    confidences = torch.bincount(places, confidence, minlength=NUM_BINS).tolist()
    rights = torch.bincount(places, is_right, minlength=NUM_BINS).tolist()
    return tuple(
        ReliabilityBin(
            low=place / NUM_BINS,
            high=(place + 1) / NUM_BINS,
            num_images=count,
            confidence=confidences[place] / count if count else None,
            accuracy=rights[place] / count if count else None,
        )
        for place, count in enumerate(counts)
    )


def _error(bins: tuple[ReliabilityBin, ...], num_images: int) -> float:
    return sum(
        one.num_images / num_images * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )
