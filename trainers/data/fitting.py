"""The images that a configuration is trained on: the training part, or the training and validation part together."""

from dataclasses import replace

import torch
from torch import Tensor

from trainers.config import Configuration
from trainers.data.images import ImageData, ImageSplit, load_images


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
    return replace(
        data,
        train=ImageSplit(
            images=_joined(data.train.images, data.validation.images),
            labels=torch.cat([data.train.labels, data.validation.labels]),
        ),
    )


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Both, one after the other; a view if they are neighbours in memory or in one file, so that nothing is copied."""
    are_neighbours = (
        first.is_contiguous()
        and second.is_contiguous()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and first.storage_offset() + first.numel() == second.storage_offset()
    )
    if not are_neighbours:
        return torch.cat([first, second])
    return first.as_strided((len(first) + len(second), *first.shape[1:]), first.stride(), first.storage_offset())
