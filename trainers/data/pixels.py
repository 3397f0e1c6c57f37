"""From an encoded image to 8 bits per channel: orientation, transparency, colour profiles and deep pixels."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from plugins.regular_files import UnsuitableFileError, require_regular_file
from trainers.data.lfs_pointers import POINTER, is_lfs_pointer
from trainers.data.listing import DataError, Item

WHITE = "white"
Scales = Mapping[str, float]
"""The pixel value that means white, by kind of deep image (`depth_of`), the same for all images of a data set."""

_RANGES = (1, 255, 1023, 4095, 16383, 65535)
"""Largest values of whole numbers with 1, 8, 10, 12, 14 and 16 bits."""
_FLOAT_RANGES = (1.0, 255.0, 65535.0)
_UPPER_HALF = "16-bit colour"
_FRAMES = "vitsearch-frames"
FORMAT_SCALES: Scales = {"16-bit": 65535.0, "float": 1.0, _UPPER_HALF: 255.0}
"""The values that mean white by the formats themselves."""
_BLOCK = 2**22
"""Bytes that Pillow reads and decodes at a time. Between its own blocks of 64 KiB, threads wait for each other."""
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_ON_ITS_SIDE, _FROM_THE_RIGHT, _FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations that exchange width and height, and those whose left or upper edge is stored last."""
_SCALABLE = ("JPEG", "MPO")
"""Formats that Pillow can decode at a half, a quarter or an eighth of their size. MPO is JPEG with further images."""
_SPARE_PIXELS = 2
"""A reduced JPEG image has at least this many times the pixels per side that are needed. The final resizing averages
them, so that it differs by about one step of 255 from that of the whole image."""


class BrokenImageError(Exception):
    """Pillow cannot read an image; the message is the reason."""


def why_broken(error: Exception, content: Any = None) -> str:
    """The reason why Pillow cannot read an image, without the image's name.

    Args:
        error: What Pillow raised.
        content: The image, as in `Item`.
    """
    if isinstance(error, UnsuitableFileError):
        return str(error.strerror)
    if is_lfs_pointer(content):
        return POINTER
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more pixels than {2 * (Image.MAX_IMAGE_PIXELS or 0):,}, the largest number that is read"
    return str(error).rstrip(".")


class DeepImageError(Exception):
    """An image has more than 8 bits per channel, and the value that means white is not given."""

    def __init__(self, extent: "Extent") -> None:
        super().__init__(extent)
        self.extent = extent


class DecodedImage(NamedTuple):
    """An image of 8 bits per channel, and what it was."""

    image: Image.Image
    """Mode L (grey) or RGB."""
    mode: str
    """Pillow's mode of the stored image."""
    size: tuple[int, int]
    """Width and height of the stored image, upright."""
    has_frames: bool = False
    """Whether the file has further images after this one, its first."""
    reduced_by: int = 1
    """Factor by which `image` is smaller than the stored image, per side."""
    corner: tuple[float, float] = (0.0, 0.0)
    """Place of the upper left corner of the picture in `image`. A reduced JPEG image ends with a part of a pixel, with
    which it begins if it was mirrored."""


class Extent(NamedTuple):
    """Lowest and highest value of a deep image."""

    kind: str
    lowest: float
    highest: float
    mode: str
    """Pillow's mode, for messages."""


@contextmanager
def large_images() -> Iterator[None]:
    """Suppress Pillow's warning about images of more than 89 megapixels; it refuses those of twice as many.

    The warning is suppressed in all threads, so enter this before starting threads that decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode(item: Item, *, scales: Scales, background: str = WHITE, side: int | None = None) -> DecodedImage:
    """An upright image of mode L (grey) or RGB.

    Transparent pixels are composited on `background`. Colour profiles are converted to sRGB. Deep pixels are scaled to
    8 bits.

    Args:
        item: The image.
        scales: Values that mean white in deep images.
        background: A colour as CSS names it.
        side: Height and width in pixels that the image will be resized to. A JPEG image that is at least four times as
            large is decoded at a half, a quarter or an eighth of its size, but at least at twice `side`, which is
            several times as fast.

    Raises:
        BrokenImageError: Pillow cannot read the image.
        DeepImageError: The image is deep, and `scales` lacks its kind.
    """
    if isinstance(item.content, np.ndarray):
        image = Image.fromarray(item.content)
        return DecodedImage(image, "L", image.size)
    image, size, reduced_by, corner = _opened(item, side)
    kind, has_frames = depth_of(image), bool(image.info.get(_FRAMES))
    if kind is not None and kind not in scales:
        values = np.asarray(image)
        raise DeepImageError(Extent(kind, float(values.min()), float(values.max()), image.mode))
    if kind is not None and kind != _UPPER_HALF:
        return DecodedImage(_scaled(image, scales[kind]), image.mode, size, has_frames)
    try:
        flat = flatten(_through_profile(image), background)
        return DecodedImage(flat, image.mode, size, has_frames, reduced_by, corner)
    except (*_BROKEN, ImageCms.PyCMSError) as error:  # such as a mode that Pillow cannot convert
        raise BrokenImageError(why_broken(error)) from error


def depth_of(image: Image.Image) -> str | None:
    """How pixels of more than 8 bits are stored: `16-bit`, `32-bit`, `float`, `16-bit colour`; `None` for 8 bits."""
    if image.mode.startswith("I;16"):
        return "16-bit"
    if image.mode in ("I", "F"):
        return "32-bit" if image.mode == "I" else "float"
    return _UPPER_HALF if image.info.get(_UPPER_HALF) else None


def white_of(extents: Mapping[str, Extent]) -> tuple[dict[str, float], list[str]]:
    """The value that means white for each kind of deep image, and remarks on values that do not fill their format.

    Whole numbers are taken to have the smallest usual number of bits that holds them all: 8, 10, 12, 14 or 16.

    Args:
        extents: Deep images by name.

    Raises:
        DataError: The range of values does not tell what they mean.
    """
    by_kind: dict[str, dict[str, Extent]] = {}
    for name, extent in extents.items():
        by_kind.setdefault(extent.kind, {})[name] = extent
    scales, remarks = {}, []
    for kind, images in by_kind.items():
        name = max(images, key=lambda one: images[one].highest)
        lowest = min(images, key=lambda one: images[one].lowest)
        highest = images[name].highest
        ranges = _FLOAT_RANGES if kind == "float" else _RANGES
        white = next((float(limit) for limit in ranges if highest <= limit), None)
        if kind == _UPPER_HALF:
            if highest < 64:  # at most 14 of 16 bits are used, of which few are left
                raise _ambiguous(name, images[name])
            scales[kind] = FORMAT_SCALES[kind]
            continue
        if white is None or not images[lowest].lowest >= 0:
            raise _ambiguous(name if white is None else lowest, images[name if white is None else lowest])
        scales[kind] = white
        if white != FORMAT_SCALES.get(kind):
            remarks.append(
                f"{len(images)} images of mode {images[name].mode} have values up to {highest:g}: {white:g} is taken "
                "for white"
            )
    return scales, remarks


def flatten(image: Image.Image, background: str) -> Image.Image:
    """An image without transparency, of mode L or RGB."""
    is_grey = image.mode in ("1", "L", "LA", "La")
    has_alpha = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if not has_alpha:
        return image.convert("L" if is_grey else "RGB")
    colour = ImageColor.getrgb(background)[:3]
    if is_grey and len(set(colour)) == 1:
        layer = image.convert("LA")
        under = Image.new("L", image.size, colour[0])
        under.paste(layer.getchannel("L"), mask=layer.getchannel("A"))
        return under
    layer = image.convert("RGBA")
    under = Image.new("RGB", image.size, colour)
    under.paste(layer, mask=layer.getchannel("A"))
    return under


def resize_image(image: Image.Image, size: int, *, crop: bool) -> NDArray[np.uint8]:
    """Pixels (C, size, size) with bilinear interpolation and antialiasing; `crop` cuts out the centre square first."""
    return resize_decoded(DecodedImage(image, image.mode, image.size), size, crop=crop)


def resize_decoded(decoded: DecodedImage, size: int, *, crop: bool) -> NDArray[np.uint8]:
    """Pixels (C, size, size) of a decoded image, as `resize_image` gives them."""
    image, (width, height) = decoded.image, decoded.size
    if crop:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    else:
        box = (0, 0, width, height)
    if decoded.reduced_by > 1:  # the box may then begin and end between pixels
        x, y = decoded.corner
        begin_x, begin_y, end_x, end_y = (value / decoded.reduced_by for value in box)
        inner = (begin_x + x, begin_y + y, min(end_x + x, image.width), min(end_y + y, image.height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=inner)
    else:
        image = image.crop(box) if crop else image
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class _Opened(NamedTuple):
    """An upright image."""

    image: Image.Image
    size: tuple[int, int]
    """Width and height of the stored image, upright."""
    reduced_by: int = 1
    """Factor by which `image` is smaller."""
    corner: tuple[float, float] = (0.0, 0.0)
    """Place of the upper left corner of the picture."""


def _opened(item: Item, side: int | None) -> _Opened:
    content = item.content
    try:
        if isinstance(content, Image.Image):
            upright = ImageOps.exif_transpose(content)
            return _Opened(upright, upright.size)
        if isinstance(content, Path):
            require_regular_file(content)
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            stored = "".join(str(tile.args) for tile in image.tile)
            halved = image.mode in ("LA", "RGB", "RGBA", "CMYK") and ";16" in stored
            has_frames = bool(getattr(image, "is_animated", False))
            width, height = image.size
            reduced_by = _reduce(image, side)
            image.decodermaxblock = _BLOCK
            upright = ImageOps.exif_transpose(image)
            if image.mode == "RGBA" and "LA;16" in stored:  # Pillow makes 16-bit grey with alpha coloured
                upright = upright.convert("LA")
            upright.info[_FRAMES] = has_frames
            if halved:  # Pillow keeps the upper 8 of 16 bits
                upright.info[_UPPER_HALF] = True
            if reduced_by == 1:
                return _Opened(upright, upright.size)
            orientation = image.getexif().get(_ORIENTATION, 1)
            size = (height, width) if orientation in _ON_ITS_SIDE else (width, height)
            corner = (
                upright.width - size[0] / reduced_by if orientation in _FROM_THE_RIGHT else 0.0,
                upright.height - size[1] / reduced_by if orientation in _FROM_BELOW else 0.0,
            )
            return _Opened(upright, size, reduced_by, corner)
    except _BROKEN as error:
        raise BrokenImageError(why_broken(error, content)) from error


def _reduce(image: Image.Image, side: int | None) -> int:
    """Make Pillow decode a JPEG image at a fraction of its size if that suffices; returns the factor."""
    if side is None or image.format not in _SCALABLE:
        return 1
    needed = _SPARE_PIXELS * side
    if min(image.size) < 2 * needed:
        return 1
    width = image.width
    image.draft(None, (needed, needed))
    return round(width / image.width)


def _scaled(image: Image.Image, white: float) -> Image.Image:
    values = np.asarray(image).astype(np.float64).clip(0, white)
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _ambiguous(name: str, extent: Extent) -> DataError:
    return DataError(
        f"the pixels of {name} must have a known range, but its mode {extent.mode} ({extent.kind}) has values from "
        f"{extent.lowest:g} to {extent.highest:g}. Save the images with 8 bits per channel, or as 16-bit grey."
    )


def _through_profile(image: Image.Image) -> Image.Image:
    """The image in sRGB if it has another profile; without one, or with a damaged one, as it is."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    transform = _to_srgb(bytes(profile), "RGB" if image.mode == "RGBA" else image.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image.convert("RGB") if image.mode == "RGBA" else image, transform)
    if converted is None:
        return image
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile, or `None` if it is sRGB itself or damaged."""
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        if mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(given):
            return None
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
