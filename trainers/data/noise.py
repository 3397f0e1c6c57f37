"""The data source `noise`: standard-normal images with random labels, for scores that need no real image."""

import torch
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.sources import noise_task
from trainers.hardware.devices import make_generator

NUM_IMAGES = 320
"""Of the training and the validation part together, where `data.max_images` does not say otherwise."""
NUM_TEST_IMAGES = 80
_STEPS_PER_DEVIATION = 32
"""Pixels are 8 bits: a standard deviation is so many steps, and what lies 4 deviations out is cut."""


def draw_noise(config: DataConfig, *, test: bool) -> tuple[Tensor, Tensor]:
    """Normal pixels and uniform labels from the split's seed; the test part has numbers of its own.

    Returns:
        Images of shape (N, 3, S, S), uint8, that are standard-normal up to 1/64 once they are normalised by channel;
        labels of shape (N,), int64.
    """
    count = (config.max_test_images or NUM_TEST_IMAGES) if test else (config.max_images or NUM_IMAGES)
    generator = make_generator(config.split_seed, "noise", int(test))
    task = noise_task(config)
    labels = torch.randint(task.num_classes, (count,), generator=generator)
    images = torch.empty(count, task.in_channels, task.image_size, task.image_size, dtype=torch.uint8)
    for image in images:  # one by one: all of them as floating-point numbers would be four times as large
        values = torch.randn(image.shape, generator=generator)
        image.copy_((values * _STEPS_PER_DEVIATION + 127.5).round().clamp(0, 255))
    return images, labels
