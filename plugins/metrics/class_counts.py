"""Predictions counted by class, for metrics that treat all classes alike."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class ClassCounts(NamedTuple):
    """Numbers of images of each class, float64, shape (classes,) each."""

    correct: "Tensor"
    """Images of the class that were predicted as it."""
    labelled: "Tensor"
    """Images of the class."""
    predicted: "Tensor"
    """Images that were predicted as the class."""


def predicted_classes(logits: "Tensor") -> "Tensor | None":
    """The class with the largest logit of each image, shape (N,), of logits (N, classes); `None` if a logit is NaN."""
    predicted = logits.argmax(1)
    # A NaN counts as the largest logit of its image.
    has_nan = bool(logits.gather(1, predicted[:, None]).isnan().any())
    return None if has_nan else predicted


def count_classes(logits: "Tensor", labels: "Tensor") -> ClassCounts | None:
    """Count the predictions of logits (N, classes) for labels (N,); `None` if a logit is NaN."""
    import torch

    predicted = predicted_classes(logits)
    if predicted is None:
        return None

    def count(classes: "Tensor") -> "Tensor":
        return torch.bincount(classes, minlength=logits.shape[1]).double()

    return ClassCounts(count(labels[predicted == labels]), count(labels), count(predicted))
