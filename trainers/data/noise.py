"""The data source `noise`: standard-normal images with random labels, for scores that need no real images."""

import torch
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.sources import noise_task
from trainers.hardware.devices import make_generator

NUM_IMAGES = 320
"""Default size of the training and validation parts together (`data.max_images`)."""
NUM_TEST_IMAGES = 80
"""Default size of the test part (`data.max_test_images`)."""
_STEPS_PER_DEVIATION = 32
"""8-bit pixel steps per standard deviation; values beyond 4 standard deviations are clipped."""


def draw_noise(config: DataConfig, *, test: bool) -> tuple[Tensor, Tensor]:
    """Draw normal pixels and uniform labels from the split seed; the test part uses a separate random stream.

    Returns:
        Images of shape (N, 3, S, S), uint8, which are standard-normal to within 1/64 after normalisation per channel;
        labels of shape (N,), int64.
    """
    count = (config.max_test_images or NUM_TEST_IMAGES) if test else (config.max_images or NUM_IMAGES)
    generator = make_generator(config.split_seed, "noise", int(test))
    task = noise_task(config)
    labels = torch.randint(task.num_classes, (count,), generator=generator)
    images = torch.empty(count, task.in_channels, task.image_size, task.image_size, dtype=torch.uint8)
    for image in images:  # one by one: floats for all images would take four times the memory
        values = torch.randn(image.shape, generator=generator)
        image.copy_((values * _STEPS_PER_DEVIATION + 127.5).round().clamp(0, 255))
    return images, labels
