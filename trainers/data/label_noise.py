"""Wrong labels on purpose: replaces labels of the training part, to measure what a training does about them."""

import torch
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.listing import DataFindings
from trainers.hardware.devices import make_generator


def noisy_labels(labels: Tensor, config: DataConfig, num_classes: int) -> Tensor:
    """Labels (N,) of which the fraction `label_noise`, rounded to whole images, is replaced; the split seed decides.

    A symmetric replacement is any other class with equal probability; a pair replaces each class with the next one, and
    the last with the first. Each replaced label is wrong, so that the fraction is exact.

    Source: the usual settings of noisy-label studies (Patrini et al. 2017, arXiv:1609.03683; Han et al. 2018,
    arXiv:1804.06872). Some draw a symmetric replacement from all classes, which leaves a tenth of ten classes right.
    """
    generator = make_generator(config.split_seed, "label-noise")
    chosen = torch.randperm(len(labels), generator=generator)[: round(config.label_noise * len(labels))]
    if config.label_noise_kind == "pairs":
        steps = torch.ones(len(chosen), dtype=torch.int64)
    else:
        steps = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + steps) % num_classes
    return noisy


def tell_of_noise(config: DataConfig, before: Tensor, after: Tensor, findings: DataFindings) -> None:
    """Add a warning with the number of replaced labels to the findings."""
    changed = int((before != after).sum())
    how = "by the next class" if config.label_noise_kind == "pairs" else "by another class at random"
    findings.warn(
        "label-noise", f"{changed} of the {len(before)} training labels are replaced {how}, as data.label_noise asks"
    )


def memorized_fraction(predicted: Tensor, labels: Tensor, true_labels: Tensor) -> float | None:
    """Fraction of the images with a wrong label whose prediction is that label; `None` if all labels are right.

    Args:
        predicted: Predicted class of each image, shape (N,).
        labels: Labels that the model is trained on, shape (N,).
        true_labels: Labels before noise, shape (N,).
    """
    is_wrong = labels != true_labels
    if not bool(is_wrong.any()):
        return None
    return float((predicted[is_wrong] == labels[is_wrong]).double().mean())
