"""Decodes the images of several parts, in all cores, into rows of pixels; remembers what is known of each image."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.config import DataConfig
from trainers.data.listing import Item, Listing
from trainers.data.pixel_rows import RECORD, Rows
from trainers.data.pixels import (
    BrokenImageError,
    DecodedImage,
    DeepImageError,
    Extent,
    Scales,
    decode,
    large_images,
    resize_decoded,
    white_of,
)
from trainers.data.sources import mixed_sizes, not_square
from trainers.data.splits import Indices
from trainers.hardware.host import available_cores

_PER_CALL = 8
"""Images that a thread decodes at a time. For small images, handing over one by one would take longer."""
_CALLS_AHEAD = 4
"""Calls per thread that wait while earlier results are stored."""

Result = TypeVar("Result")

OnProgress = Callable[[int, int], None]
"""Called with the number of images that are decoded, and of all."""


class Chosen(NamedTuple):
    """Some images of a listing."""

    listing: Listing
    indices: Indices
    """In ascending order."""


class KnownImage(NamedTuple):
    """An image that was decoded before."""

    name: str
    record: Any
    """A `RECORD`."""
    mode: str
    planes: NDArray[np.uint8]
    """Shape (C, S, S)."""


class DecodedRows(NamedTuple):
    """What is known of decoded images; their pixels are in the rows."""

    records: NDArray[Any]
    """One `RECORD` per image of all parts, part after part."""
    modes: list[str]
    """Pillow's modes, to which the records refer."""
    broken: dict[str, str]
    """Reasons why images cannot be read, by name."""
    scales: dict[str, float]
    """The value that means white in deep images, by kind."""
    remarks: list[str]
    """Remarks on deep images, for people."""
    files: dict[int, Path]
    """Files that were read, by position."""

    @property
    def originals(self) -> Counter[tuple[str, tuple[int, int]]]:
        """Number of images by Pillow's mode and size (width, height) as stored."""
        whole = self.records[self.records["row"] >= 0]
        kinds, counts = np.unique(whole[["mode", "width", "height"]], return_counts=True)
        return Counter(
            {
                (self.modes[int(mode)], (int(width), int(height))): int(count)
                for (mode, width, height), count in zip(kinds, counts, strict=True)
            }
        )


def decode_rows(
    parts: Sequence[Chosen],
    config: DataConfig,
    rows: Rows,
    *,
    num_channels: int | None = None,
    scales: Scales | None = None,
    known: Mapping[int, KnownImage] | None = None,
    on_progress: OnProgress | None = None,
) -> DecodedRows:
    """Decode several parts into rows, part after part; broken images have no row.

    Args:
        parts: The images of each part.
        config: Size, and what to do with images that are not square or transparent.
        rows: Receives the pixels.
        num_channels: Number of channels. Default: one if all images are grey, otherwise three.
        scales: Values that mean white in deep images. Default: told by the values of all parts.
        known: Images that need not be decoded, by position: part after part, counted from 0.
        on_progress: Called regularly.

    Raises:
        DataError: Images differ in size although `resize` is `same`, or have an unknown range.
        OSError: The pixels cannot be stored.
    """
    decoder = _Decoder(parts, config, rows, {1: "L", 3: "RGB"}[num_channels] if num_channels else None, on_progress)
    decoder.scales |= scales or {}
    return decoder.run(known or {})


class _Decoding(NamedTuple):
    """An image as a thread hands it over: decoded, deep or broken."""

    name: str
    file: Path | None
    decoded: DecodedImage | None = None
    planes: NDArray[np.uint8] | None = None
    extent: Extent | None = None
    broken: str | None = None


class _Decoder:
    """Hands images to threads, and stores what they return in the order of the images."""

    def __init__(
        self,
        parts: Sequence[Chosen],
        config: DataConfig,
        rows: Rows,
        mode: str | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.scales: dict[str, float] = {}
        self._config = config
        self._rows = rows
        self._mode = mode
        self._on_progress = on_progress
        self._groups = _by_listing(parts)
        self._records = np.zeros(sum(len(chosen.indices) for chosen in parts), dtype=RECORD)
        self._modes: dict[str, int] = {}
        self._extents: dict[str, Extent] = {}
        self._deep: set[int] = set()
        self._broken: dict[str, str] = {}
        self._files: dict[int, Path] = {}
        self._first: tuple[str, tuple[int, int]] | None = None
        self._num_done = 0

    def run(self, known: Mapping[int, KnownImage]) -> DecodedRows:
        """Decode all images, those of unknown range after the others."""
        remarks: list[str] = []
        Image.preinit()  # not in several threads at once
        with large_images(), ThreadPoolExecutor(available_cores()) as pool:
            try:
                self._read(pool, known, None)
                if self._extents:
                    found, remarks = white_of(self._extents)
                    self.scales |= found
                    self._read(pool, {}, self._deep)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        records = self._records
        kept = np.flatnonzero(records["row"] >= 0)
        self._rows.keep(kept)
        records["row"][kept] = np.arange(len(kept))
        return DecodedRows(records, list(self._modes), self._broken, self.scales, remarks, self._files)

    def _read(self, pool: ThreadPoolExecutor, known: Mapping[int, KnownImage], only: set[int] | None) -> None:
        for listing, indices, positions in self._groups:
            chosen = [
                (index, position)
                for index, position in zip(indices.tolist(), positions.tolist(), strict=True)
                if only is None or position in only
            ]
            waiting = [index for index, position in chosen if position not in known]
            results = map_in_order(self._decode, listing.items(waiting), pool)
            for _, position in chosen:
                if position in known:
                    self._store_known(position, known[position])
                else:
                    self._store(position, next(results))

    def _decode(self, item: Item) -> _Decoding:
        """Runs in a thread."""
        file = item.content if isinstance(item.content, Path) else None
        size = self._config.image_size
        try:
            decoded = decode(item, scales=self.scales, background=self._config.background, side=size)
        except DeepImageError as error:
            return _Decoding(item.name, file, extent=error.extent)
        except BrokenImageError as error:
            return _Decoding(item.name, file, broken=str(error))
        if self._mode is not None:
            decoded = decoded._replace(image=decoded.image.convert(self._mode))
        planes = resize_decoded(decoded, size, crop=self._config.resize == "crop")
        return _Decoding(item.name, file, decoded, planes)

    def _store(self, position: int, result: _Decoding) -> None:
        name, record = result.name, self._records[position]
        record["row"] = -1
        if result.file is not None:
            self._files[position] = result.file
        if result.extent is not None:
            self._extents[name] = result.extent
            self._deep.add(position)
            record["is_deep"] = True
            return
        if result.broken is not None:
            self._broken[name] = result.broken
        if result.decoded is not None and result.planes is not None:
            decoded, planes = result.decoded, result.planes
            self._check_size(name, decoded.size)
            self._rows.put(position, planes)
            record["row"] = position
            record["width"], record["height"] = decoded.size
            record["mode"] = self._modes.setdefault(decoded.mode, len(self._modes))
            record["num_channels"] = len(planes)
            record["has_frames"] = decoded.has_frames
        self._count()

    def _store_known(self, position: int, known: KnownImage) -> None:
        record = known.record
        self._check_size(known.name, (int(record["width"]), int(record["height"])))
        self._rows.put(position, known.planes)
        self._records[position] = record
        self._records[position]["row"] = position
        self._records[position]["mode"] = self._modes.setdefault(known.mode, len(self._modes))
        self._count()

    def _check_size(self, name: str, size: tuple[int, int]) -> None:
        if self._config.resize != "same":
            return
        self._first = self._first or (name, size)
        if size != self._first[1]:
            raise mixed_sizes(*self._first, name, size)
        if size[0] != size[1]:
            raise not_square(name, size)

    def _count(self) -> None:
        self._num_done += 1
        if self._on_progress is not None:
            self._on_progress(self._num_done, len(self._records))


def _by_listing(parts: Sequence[Chosen]) -> list[tuple[Listing, Indices, Indices]]:
    """The listings, each once so that its files are read once: ascending indices, and the positions of their images."""
    found: dict[int, tuple[Listing, list[Indices], list[Indices]]] = {}
    first = 0
    for listing, indices in parts:
        _, several, positions = found.setdefault(id(listing), (listing, [], []))
        several.append(indices)
        positions.append(np.arange(first, first + len(indices)))
        first += len(indices)
    groups = []
    for listing, several, positions in found.values():
        together = np.concatenate(several)
        order = np.argsort(together, kind="stable")
        groups.append((listing, together[order], np.concatenate(positions)[order]))
    return groups


def map_in_order(work: Callable[[Item], Result], items: Iterator[Item], pool: ThreadPoolExecutor) -> Iterator[Result]:
    """The results of `work` for all items, in their order; only a few items are read ahead."""
    waiting: deque[Future[list[Result]]] = deque()
    most = _CALLS_AHEAD * available_cores()
    while True:
        several = list(islice(items, _PER_CALL))
        if several:
            waiting.append(pool.submit(lambda some: [work(item) for item in some], several))
        while waiting and (not several or len(waiting) >= most):
            yield from waiting.popleft().result()
        if not several:
            return
