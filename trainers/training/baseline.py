"""What a model reaches without looking at the images: the figures that every other one must beat."""

import torch
from torch import Tensor

from search_spaces.recipes import PluginChoice
from trainers.training.evaluation import Evaluation, judge


def blind_evaluation(
    train_labels: Tensor, labels: Tensor, *, num_classes: int, metric: PluginChoice | None = None
) -> Evaluation:
    """Metrics of a model that gives each class its frequency in training, and so always predicts the largest one.

    Its accuracy is that of the largest class, and its loss is the cross-entropy of the frequencies. One image is added
    to each class, so that the loss is finite for classes without training images.

    Args:
        train_labels: Classes of the training images, shape (N,).
        labels: Classes of the images to predict, shape (M,).
        num_classes: Number of classes.
        metric: A further metric to measure.
    """
    counts = torch.bincount(train_labels.cpu(), minlength=num_classes)
    return judge(blind_logits(counts, num_images=len(labels)), labels.cpu(), metric=metric)


def blind_logits(counts: Tensor, *, num_images: int) -> Tensor:
    """The same logits for all images, shape (num_images, classes): the logarithms of the frequencies of the classes.

    Args:
        counts: Number of images of each class, shape (classes,). One is added to each.
        num_images: Number of images to predict.
    """
    more = counts.double() + 1
    return (more / more.sum()).log().expand(num_images, len(counts))
