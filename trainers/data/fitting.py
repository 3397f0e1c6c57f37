"""The images that a configuration is trained on: the training part, or the training and validation part together."""

from dataclasses import replace

import torch

from trainers.config import Configuration
from trainers.data.images import ImageData, ImageSplit, load_images
from trainers.data.mapping import joined


def load_for_training(configuration: Configuration) -> ImageData:
    """The data of a configuration, for its training.

    If it trains on the validation part too, that part is appended to the training part. It also stays the validation
    part, so that training can go on as usual, but its figures then tell nothing about other images. Mean and standard
    deviation of the pixels remain those of the training part.

    Raises:
        DataError: See `load_images`.
    """
    data = load_images(configuration.data)
    if configuration.train_on == "train":
        return data
    labels = torch.cat([data.train.labels, data.validation.labels])
    truth = data.train.true_labels
    return replace(
        data,
        train=ImageSplit(
            images=joined(data.train.images, data.validation.images),
            labels=labels,
            true_labels=None if truth is None else torch.cat([truth, data.validation.labels]),
        ),
    )
