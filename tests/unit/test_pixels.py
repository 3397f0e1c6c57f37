"""JPEG images that are decoded at a reduced size."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from trainers.data.listing import Item
from trainers.data.pixels import BrokenImageError, decode, resize_decoded, resize_image

PHOTOS = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
"""Two photographs of 640 x 427 pixels."""


def photo(number: int, *, orientation: int = 1, size: tuple[int, int] | None = None, grey: bool = False) -> Item:
    with Image.open(PHOTOS[number]) as image:
        changed = image.convert("L" if grey else "RGB")
    if size is not None:
        changed = changed.resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    changed.save(buffer, "JPEG", quality=92, exif=exif)
    return Item("photo", buffer.getvalue())


def pixels(item: Item, side: int, *, crop: bool, reduce: bool) -> NDArray[np.int64]:
    decoded = decode(item, scales={}, side=side if reduce else None)
    return resize_decoded(decoded, side, crop=crop).astype(np.int64)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("number", [0, 1])
def test_pixels_differ_by_less_than_one_step_on_average(number: int, side: int, crop: bool) -> None:
    item = photo(number)
    assert decode(item, scales={}, side=side).reduced_by == {16: 8, 32: 4, 64: 2}[side]
    difference = np.abs(pixels(item, side, crop=crop, reduce=True) - pixels(item, side, crop=crop, reduce=False))
    assert 0 < difference.mean() < 0.7
    assert np.percentile(difference, 99) <= 6
    assert difference.max() <= 16  # at edges in the picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_place_are_those_of_the_upright_image(orientation: int) -> None:
    item = photo(0, orientation=orientation, size=(601, 403), grey=True)
    decoded = decode(item, scales={}, side=32)
    assert decoded.reduced_by == 4
    assert decoded.size == ((601, 403) if orientation < 5 else (403, 601))
    assert decoded.mode == "L"
    difference = np.abs(pixels(item, 32, crop=True, reduce=True) - pixels(item, 32, crop=True, reduce=False))
    assert difference.mean() < 0.7


def test_an_image_that_is_not_large_enough_is_decoded_whole() -> None:
    item = photo(0, size=(500, 255))
    assert decode(item, scales={}, side=64).reduced_by == 1
    assert not (pixels(item, 64, crop=True, reduce=True) - pixels(item, 64, crop=True, reduce=False)).any()


def test_other_formats_are_decoded_whole() -> None:
    buffer = BytesIO()
    Image.new("RGB", (900, 900), (10, 200, 30)).save(buffer, "PNG")
    decoded = decode(Item("png", buffer.getvalue()), scales={}, side=32)
    assert decoded.reduced_by == 1
    assert (resize_decoded(decoded, 32, crop=True) == resize_image(decoded.image, 32, crop=True)).all()


def test_a_jpeg_that_ends_in_the_middle_is_broken_at_every_size() -> None:
    content = photo(0).content
    for side in (16, 64, None):
        with pytest.raises(BrokenImageError, match="truncated"):
            decode(Item("torn", content[: len(content) // 2]), scales={}, side=side)
