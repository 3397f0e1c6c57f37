"""Images as callers have them: paths, arrays and Pillow images, alone or several, turned into items to decode."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from trainers.data.listing import DataError, Item

GivenImage = str | os.PathLike[str] | bytes | np.ndarray[Any, Any] | Image.Image
"""An image: the path or the bytes of a file, pixels (H, W) or (H, W, C), uint8, or a Pillow image."""
GivenImages = GivenImage | Iterable[GivenImage]
"""An image, several, or pixels of several: (N, H, W, C), uint8."""

_CHANNELS = (1, 3, 4)
_SHAPES = "the shape (H, W) or (H, W, C) with 1, 3 or 4 channels"


class NamedImage(NamedTuple):
    """One image, not decoded."""

    item: Item
    path: Path | None
    """Its file, if it was given as one."""


def name_images(images: GivenImages) -> list[NamedImage]:
    """The images in their order, each with a name for messages, such as `images[2]`.

    Raises:
        DataError: Something is neither a path, nor bytes, nor an array of that shape and type, nor a Pillow image.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        _check_type("images", images)
        return [_named(f"images[{index}]", pixels) for index, pixels in enumerate(images)]
    if isinstance(images, str | os.PathLike | bytes | np.ndarray | Image.Image):
        return [_named("the image", images)]
    return [_named(f"images[{index}]", image) for index, image in enumerate(_each(images))]


def _each(images: Any) -> Iterator[Any]:
    if not isinstance(images, Iterable):
        raise _not_an_image("images", images)
    yield from images


def _named(name: str, image: Any) -> NamedImage:
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return NamedImage(Item(str(path), path), path)
    if isinstance(image, bytes):
        return NamedImage(Item(name, image), None)
    if isinstance(image, np.ndarray):
        return NamedImage(Item(name, _from_array(name, image)), None)
    if isinstance(image, Image.Image):
        _check_size(name, image.size)
        return NamedImage(Item(name, image), None)
    raise _not_an_image(name, image)


def _from_array(name: str, pixels: np.ndarray[Any, Any]) -> Image.Image:
    _check_type(name, pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS):
        raise DataError(f"{name} must have {_SHAPES}, but has {pixels.shape}. {_advice(pixels.shape)}")
    _check_size(name, pixels.shape[:2])
    return Image.fromarray(np.ascontiguousarray(pixels))


def _check_type(name: str, pixels: np.ndarray[Any, Any]) -> None:
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{name} must be an array of uint8, from 0 (black) to 255 (white), but has the type {pixels.dtype}. "
            "Scale the values to this range and convert them with .astype(numpy.uint8)."
        )


def _check_size(name: str, size: tuple[int, ...]) -> None:
    if 0 in size:
        raise DataError(f"{name} must have at least one pixel, but has {size[0]} x {size[1]}. Leave it out.")


def _advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return "Move the channels to the end with .transpose(1, 2, 0), or give several grey images as (N, H, W, 1)."
    if len(shape) == 3:
        return "Give several grey images as (N, H, W, 1)."
    return "Give several images as a list or as one array (N, H, W, C)."


def _not_an_image(name: str, found: object) -> DataError:
    return DataError(
        f"{name} must be the path or the bytes of a file, a NumPy array or a Pillow image, but got "
        f"{type(found).__name__}. Convert it to one of these."
    )
