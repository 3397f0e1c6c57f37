"""Where decoded pixels are collected, image by image: in memory, or in a file that is published when it is whole.

A file holds the pixels, what is known of each image (`RECORD`), further facts as JSON, and the lengths of these parts.
Legend: `N` images of `C` channels, `S` x `S` pixels.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.data.mapping import map_pixels

RECORD = np.dtype(
    [
        ("name", "V16"),  # digest of the name of the image
        ("num_bytes", "i8"),  # of the file
        ("changed_ns", "i8"),  # time of the last change of the file
        ("row", "i8"),  # -1 if the image is broken
        ("width", "i4"),
        ("height", "i4"),
        ("mode", "u1"),  # position in the list `modes` of the facts
        ("num_channels", "u1"),
        ("has_frames", "?"),
        ("is_deep", "?"),  # whether the pixels depend on the scale of the whole set
    ]
)
"""What is known of one image of a set, whether or not it could be decoded."""

_TRAILER = struct.Struct("<8sqqqqq")
_MAGIC = b"vitspix1"
_COPIED_BYTES = 1 << 24


class TooLargeError(Exception):
    """The pixels need more bytes than rows may have.

    Attributes:
        num_bytes: Number of bytes that they need.
    """

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


class Rows(Protocol):
    """Pixels of `N` images, of which each row is written once."""

    num_channels: int
    """0 until the first image is written."""

    def put(self, row: int, planes: NDArray[np.uint8]) -> None:
        """Write an image (C, S, S). A grey one fills all channels; the first colour image widens all others.

        Raises:
            TooLargeError: All images together would be too large.
        """
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but these, which are ascending."""
        ...


class _Rows(Rows):
    """What both kinds have in common."""

    def __init__(self, num_rows: int, size: int, num_channels: int, max_bytes: float) -> None:
        self.num_rows = num_rows
        self.size = size
        self.num_channels = 0
        self._max_bytes = max_bytes
        if num_channels:
            self._set_channels(num_channels)

    def put(self, row: int, planes: NDArray[np.uint8]) -> None:
        if len(planes) > self.num_channels:
            self._set_channels(len(planes))
        self._write(row, np.broadcast_to(planes, self.shape[1:]))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of all pixels."""
        return self.num_rows, self.num_channels, self.size, self.size

    @property
    def _row_bytes(self) -> int:
        return self.num_channels * self.size**2

    def _set_channels(self, num_channels: int) -> None:
        before, self.num_channels = self.num_channels, num_channels
        if self.num_rows * self._row_bytes > self._max_bytes:
            raise TooLargeError(self.num_rows * self._row_bytes)
        self._resize(before)

    def _resize(self, before: int) -> None:
        """Make room for `num_channels` channels, where there were `before`."""
        raise NotImplementedError

    def _write(self, row: int, planes: NDArray[np.uint8]) -> None:
        raise NotImplementedError


class MemoryRows(_Rows):
    """Pixels in memory; the arguments are those of `FileRows`."""

    def __init__(self, num_rows: int, size: int, num_channels: int = 0, *, max_bytes: float = math.inf) -> None:
        self._pixels = np.empty((num_rows, 0, size, size), dtype=np.uint8)
        super().__init__(num_rows, size, num_channels, max_bytes)

    def keep(self, rows: NDArray[np.int64]) -> None:
        if not self.num_channels:
            self._set_channels(1)
        if len(rows) < self.num_rows:
            self._pixels = self._pixels[rows]
            self.num_rows = len(rows)

    def tensor(self) -> Tensor:
        """All pixels, shape (N, C, S, S), uint8."""
        return torch.from_numpy(self._pixels)

    def _resize(self, before: int) -> None:
        narrow, self._pixels = self._pixels, np.empty(self.shape, dtype=np.uint8)
        if before:
            self._pixels[:] = narrow

    def _write(self, row: int, planes: NDArray[np.uint8]) -> None:
        self._pixels[row] = planes


class FileRows(_Rows):
    """Pixels in a new file, which no other process reads until `publish`.

    Args:
        file: The unfinished file.
        num_rows: `N`.
        size: `S`.
        num_channels: `C`, if it is known.
        max_bytes: Largest size of the pixels.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self, file: Path, num_rows: int, size: int, num_channels: int = 0, *, max_bytes: float = math.inf
    ) -> None:
        self._file = file
        self._opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        super().__init__(num_rows, size, num_channels, max_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._opened)
        self._file.unlink(missing_ok=True)

    def keep(self, rows: NDArray[np.int64]) -> None:
        if not self.num_channels:
            self._set_channels(1)
        if len(rows) == self.num_rows:
            return
        length = self._row_bytes
        for target, source in enumerate(rows.tolist()):
            if target != source:
                os.pwrite(self._opened, os.pread(self._opened, length, source * length), target * length)
        self.num_rows = len(rows)
        os.ftruncate(self._opened, self.num_rows * length)

    def publish(self, target: Path, records: NDArray[Any], facts: Mapping[str, Any]) -> "PixelFile":
        """Append what is known of the images, and give the file its name, at once and only when it is on the disk."""
        known, text = records.tobytes(), json.dumps(facts).encode()
        end = self.num_rows * self._row_bytes
        sizes = (self.num_rows, self.num_channels, self.size, len(known), len(text))
        self._write_all(known + text + _TRAILER.pack(_MAGIC, *sizes), end)
        os.fsync(self._opened)
        published = open_pixel_file(self._file)  # before another process may remove it to make room
        assert published is not None
        self._file.replace(target)
        return published

    def _resize(self, before: int) -> None:
        os.ftruncate(self._opened, self.num_rows * self._row_bytes)
        if before:
            self._widen(before)

    def _widen(self, before: int) -> None:
        """Repeat the channels of all rows, from the last to the first, because they grow in place."""
        length = before * self.size**2
        step = max(1, _COPIED_BYTES // self._row_bytes)
        for end in range(self.num_rows, 0, -step):
            start = max(0, end - step)
            content = os.pread(self._opened, (end - start) * length, start * length)
            narrow = np.frombuffer(content, dtype=np.uint8).reshape(end - start, before, self.size, self.size)
            wide = np.broadcast_to(narrow, (end - start, *self.shape[1:]))
            self._write_all(wide.tobytes(), start * self._row_bytes)

    def _write(self, row: int, planes: NDArray[np.uint8]) -> None:
        self._write_all(planes.tobytes(), row * self._row_bytes)

    def _write_all(self, content: bytes, offset: int) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._opened, view, offset)
            view, offset = view[written:], offset + written


class PixelFile(NamedTuple):
    """A published file."""

    pixels: Tensor
    """Shape (N, C, S, S), uint8; a map, which stays valid if the file is replaced or removed."""
    records: NDArray[Any]
    """One `RECORD` per image of the set, including broken ones."""
    facts: dict[str, Any]


def open_pixel_file(file: Path) -> PixelFile | None:
    """A published file; `None` if there is none, or if it is of another version or damaged.

    Raises:
        OSError: The file exists, but cannot be read.
    """
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            if size < _TRAILER.size:
                return None
            opened.seek(size - _TRAILER.size)
            magic, rows, channels, side, num_known, num_text = _TRAILER.unpack(opened.read(_TRAILER.size))
            num_pixels = rows * channels * side * side
            if magic != _MAGIC or size != num_pixels + num_known + num_text + _TRAILER.size:
                return None
            opened.seek(num_pixels)
            records = np.frombuffer(opened.read(num_known), dtype=RECORD)
            facts = json.loads(opened.read(num_text))
            return PixelFile(map_pixels(opened.fileno(), (rows, channels, side, side)), records, facts)
    except FileNotFoundError:
        return None
