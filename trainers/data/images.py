"""Loads, resizes and splits images in memory. A separate function, which no search calls, loads the test part."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from search_spaces.base import ImageTask
from trainers.config import NOISE, DataConfig
from trainers.data.noise import draw_noise
from trainers.data.sources import (
    BUILT_IN,
    DataError,
    Item,
    Listing,
    list_source,
    mixed_sizes,
    noise_task,
    not_square,
    unreadable,
)

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Images and their classes. Legend: `N` images of `C` channels, `S` x `S` pixels."""

    images: Tensor
    """Shape (N, C, S, S), uint8."""
    labels: Tensor
    """Shape (N,), int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageSplit":
        """A copy on another device."""
        return ImageSplit(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The parts of a data set that trials may use: training and validation."""

    name: str
    task: ImageTask
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean of the training part per channel, with pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Standard deviation, computed in the same way."""
    train: ImageSplit
    validation: ImageSplit
    digest: str
    """sha256 of the pixels and labels of both parts and of the class names."""


@lru_cache(maxsize=2)
def load_images(config: DataConfig) -> ImageData:
    """Load the training and validation parts. The two most recent results are cached.

    Raises:
        DataError: The source is missing, empty or unusable, or contains an unreadable image.
    """
    if config.source == NOISE:
        return _load_noise(config)
    listing, own_test = list_source(config)
    train, validation, _ = split_indices(listing.labels, config, own_test=own_test is not None)
    both = np.sort(np.concatenate([train, validation]))
    # Decoded together, so that both parts have the same number of channels.
    pixels = torch.from_numpy(_decode(listing, both, config))
    labels = torch.tensor(listing.labels)
    parts = [
        ImageSplit(images=pixels[torch.from_numpy(np.searchsorted(both, part))], labels=labels[torch.from_numpy(part)])
        for part in (train, validation)
    ]
    mean, std = channel_statistics(parts[0].images)
    return ImageData(
        name=config.source if config.source in BUILT_IN else Path(config.source).stem,
        task=ImageTask(image_size=config.image_size, in_channels=pixels.shape[1], num_classes=len(listing.class_names)),
        class_names=listing.class_names,
        mean=mean,
        std=std,
        train=parts[0],
        validation=parts[1],
        digest=_digest(listing.class_names, parts),
    )


def _load_noise(config: DataConfig) -> ImageData:
    """Noise for both parts, split without stratification: the labels are random."""
    images, labels = draw_noise(config, test=False)
    count = len(labels) - max(1, round(config.validation * len(labels)))
    parts = [
        ImageSplit(images=images[:count], labels=labels[:count]),
        ImageSplit(images=images[count:], labels=labels[count:]),
    ]
    mean, std = channel_statistics(parts[0].images)
    task = noise_task(config)
    names = tuple(str(number) for number in range(task.num_classes))
    return ImageData(
        name=NOISE,
        task=task,
        class_names=names,
        mean=mean,
        std=std,
        train=parts[0],
        validation=parts[1],
        digest=_digest(names, parts),
    )


def load_test_images(config: DataConfig) -> ImageSplit:
    """Load the test part, for the champion only: the source's own, or the part that the split holds out.

    The images have as many channels as those of the other parts.

    Raises:
        DataError: For the same reasons as in `load_images`.
    """
    if config.source == NOISE:
        images, labels = draw_noise(config, test=True)
        return ImageSplit(images=images, labels=labels)
    listing, test_listing = list_source(config)
    if test_listing is None:
        indices = split_indices(listing.labels, config, own_test=False)[2]
    else:
        listing, indices = test_listing, np.arange(len(test_listing.labels))
    classes = np.asarray(listing.labels)
    if config.max_test_images is not None and config.max_test_images < len(indices):
        indices = _draw(indices, classes, config.max_test_images, config, part="max_test_images")[0]
    pixels = _decode(listing, indices, config, mode=image_mode(load_images(config).task))
    return ImageSplit(images=torch.from_numpy(pixels), labels=torch.from_numpy(classes[indices]))


def split_indices(labels: Sequence[int], config: DataConfig, *, own_test: bool) -> tuple[Indices, Indices, Indices]:
    """Split images into training, validation and test parts, stratified by class.

    Args:
        labels: Class of each image.
        config: Fractions, size limit and seed.
        own_test: Whether the source has its own test part, so that no images are held out for testing.

    Returns:
        Three disjoint arrays of ascending indices.

    Raises:
        DataError: A part would be too small to contain every class.
    """
    classes = np.asarray(labels)
    rest: Indices = np.arange(len(classes))
    test: Indices = np.arange(0)
    fraction = config.validation
    if not own_test:
        test, rest = _draw(rest, classes, round(config.test * len(rest)), config, part="test")
        fraction = config.validation / (1 - config.test)
    if config.max_images is not None and config.max_images < len(rest):
        rest, _ = _draw(rest, classes, config.max_images, config, part="max_images")
    validation, train = _draw(rest, classes, round(fraction * len(rest)), config, part="validation")
    return train, validation, test


def _draw(
    indices: Indices, labels: NDArray[Any], count: int, config: DataConfig, *, part: str
) -> tuple[Indices, Indices]:
    """A stratified sample of `count` indices, and the remaining indices; both in ascending order."""
    from sklearn.model_selection import train_test_split

    classes, sizes = np.unique(labels[indices], return_counts=True)
    if sizes.min() < 2 or min(count, len(indices) - count) < len(classes):
        raise DataError(
            f"data.{part} must leave at least one image of each of the {len(classes)} classes on both sides of the "
            f"split, but it takes {count} of {len(indices)} images, and the smallest class has {sizes.min()}. "
            f"Change data.{part} or data.max_images, or add images."
        )
    others, chosen = train_test_split(
        indices, test_size=count, random_state=config.split_seed, stratify=labels[indices]
    )
    return np.sort(chosen), np.sort(others)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), with pixels scaled to 0..1.

    The standard deviation of a constant channel is set to 1, so that it can be used as a divisor.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        shares = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(shares @ values)
        deviation = float(shares @ (values - mean) ** 2) ** 0.5
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)


def image_mode(task: ImageTask) -> str:
    """Pillow's image mode for a task: `L` (grey) or `RGB`."""
    return "L" if task.in_channels == 1 else "RGB"


def _decode(listing: Listing, indices: Indices, config: DataConfig, *, mode: str | None = None) -> NDArray[np.uint8]:
    """Pixels (N, C, S, S) of the images at ascending `indices`.

    Without `mode`, there is one channel if all images are grey, else three.
    """
    size = config.image_size
    pixels = np.empty((len(indices), 1, size, size), dtype=np.uint8)
    first: tuple[str, tuple[int, int]] | None = None
    for position, item in enumerate(listing.items([int(index) for index in indices])):
        image = open_image(item)
        if config.resize == "same":
            first = first or (item.name, image.size)
            if image.size != first[1]:
                raise mixed_sizes(*first, item.name, image.size)
            if image.width != image.height:
                raise not_square(item.name, image.size)
        planes = resize_image(image if mode is None else image.convert(mode), size, crop=config.resize == "crop")
        if len(planes) > pixels.shape[1]:
            pixels = np.repeat(pixels, len(planes), axis=1)
        pixels[position] = planes
    return pixels


def open_image(item: Item) -> Image.Image:
    """Decode an image as mode L (grey) or RGB and apply its EXIF orientation.

    Raises:
        DataError: Pillow cannot read the image.
    """
    content = item.content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    try:
        if isinstance(content, Image.Image):
            return _upright(content)
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as opened:
            return _upright(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unreadable(item.name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip to 8
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "L", "LA", "F") else "RGB")


def resize_image(image: Image.Image, size: int, *, crop: bool) -> NDArray[np.uint8]:
    """Pixels (C, size, size) with bilinear interpolation and antialiasing; `crop` cuts out the centre square first."""
    if crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _digest(class_names: tuple[str, ...], parts: Sequence[ImageSplit]) -> str:
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for part in parts:
        digest.update(json.dumps(list(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy().data)
        digest.update(part.labels.contiguous().numpy().data)
    return digest.hexdigest()
