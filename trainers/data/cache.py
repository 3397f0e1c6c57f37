"""The cache of decoded images: one file per set of images, size and pixel settings, shared by all processes.

A set is the training and validation part together, or the test part. Its file is named by the names of its images and
the settings that change pixels. Changed images are noticed by the size and time of their files. One process builds a
file, while others that need it wait; it gets its name when it is complete. If only some images are new or have changed,
the others are copied from files with the same settings.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import features
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.cache_settings import GIB, cache_settings, decoding_watcher, must_verify
from trainers.data.decoding import Chosen, DecodedRows, KnownImage, decode_rows
from trainers.data.listing import DataError, Origin
from trainers.data.pixel_rows import FileRows, MemoryRows, PixelFile, TooLargeError, open_pixel_file
from trainers.data.pixels import Scales
from trainers.hardware.host import available_cores, available_memory_gib

_VERSION = 1
"""Version of the decoding. Raise it if the same file gives other pixels than before."""
_SUFFIX = ".pixels"
_UNFINISHED = ".unfinished"
_LOCK = ".lock"
_NOTES = ".json"
_MEMORY_SHARE = 0.2
"""Share of the available memory for copies of decoded images, of all workers of this machine together."""
_COPIED_BYTES = 256 * 2**20
"""Largest set of images of which a process makes a copy. Reading a larger one from the map is as fast."""
_MAX_SOURCES = 8
"""Files from which unchanged images are copied."""

_logger = logging.getLogger(__name__)


class LoadedRows(NamedTuple):
    """Decoded images of several parts."""

    pixels: Tensor
    """Shape (N, C, S, S), uint8, of the images that are not broken, part after part; in memory, or a map of a file."""
    rows: DecodedRows
    notes: "Notes | None" = None
    """Further facts that are kept with the images; `None` if they are not in the cache."""


class Notes:
    """Facts about a file of the cache, which would take long to compute again.

    Args:
        file: The file.
        build: What distinguishes it from earlier files of that name.
    """

    def __init__(self, file: Path, build: str) -> None:
        self._file = file
        self._build = build

    def read(self, key: bytes) -> dict[str, Any] | None:
        """The facts kept under a key."""
        try:
            found: dict[str, Any] = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):  # there are none yet
            return None
        return found

    def write(self, key: bytes, facts: Mapping[str, Any]) -> None:
        """Keep facts, if the folder can be written."""
        path = self._path(key)
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as new:
            json.dump(facts, new)
            new.close()
            Path(new.name).replace(path)

    def _path(self, key: bytes) -> Path:
        return self._file.with_name(f"{self._file.stem}.{_digest(self._build.encode() + key).hex()[:16]}{_NOTES}")


def load_rows(
    parts: Sequence[Chosen], config: DataConfig, *, num_channels: int | None = None, scales: Scales | None = None
) -> LoadedRows:
    """Load decoded images from the cache; decode and keep them if they are not there, or have changed.

    The result does not depend on what the cache contains.

    Args:
        parts: The images of each part.
        config: Size, and what to do with images that are not square or transparent.
        num_channels: Number of channels. Default: one if all images are grey, otherwise three.
        scales: Values that mean white in deep images. Default: told by the values of all parts.

    Raises:
        DataError: Images differ in size although `resize` is `same`, or have an unknown range, or all images together
            are too large for the cache and for the memory.
    """
    request = _Request(parts, config, num_channels, dict(scales or {}))
    origins = [listing.origins(indices.tolist()) for listing, indices in parts]
    known = [origin for several in origins if several is not None for origin in several]
    settings = cache_settings()
    if len(known) < request.num_images or not settings.max_bytes:
        return _decode_in_memory(request, why="VITSEARCH_CACHE_GIB is 0")
    entry = _Entry(settings.folder, settings.max_bytes, request, known)
    try:
        return entry.load()
    except TooLargeError:
        return _decode_in_memory(request, why=f"VITSEARCH_CACHE_GIB allows {settings.max_bytes / GIB:.1f} GiB")
    except (OSError, NotImplementedError) as error:  # the latter: the file system has no locks
        reason = getattr(error, "strerror", None) or str(error)
        place = getattr(error, "filename", None) or settings.folder
        _logger.warning("Decoded images are not kept for the next start: %s: %s.", place, reason)
        return _decode_in_memory(request, why=f"it cannot be written to ({reason})")


class _Request(NamedTuple):
    parts: Sequence[Chosen]
    config: DataConfig
    num_channels: int | None
    scales: dict[str, float]

    @property
    def num_images(self) -> int:
        return sum(len(chosen.indices) for chosen in self.parts)

    def decode(self, rows: FileRows | MemoryRows, known: Mapping[int, KnownImage]) -> DecodedRows:
        return decode_rows(
            self.parts,
            self.config,
            rows,
            num_channels=self.num_channels,
            scales=self.scales,
            known=known,
            on_progress=decoding_watcher(),
        )


def _decode_in_memory(request: _Request, *, why: str) -> LoadedRows:
    """Decode without the cache, for the reason `why`."""
    max_bytes = available_memory_gib() * GIB
    size, num_channels = request.config.image_size, request.num_channels or 0
    try:
        rows = MemoryRows(request.num_images, size, num_channels, max_bytes=max_bytes)
        decoded = request.decode(rows, {})
    except TooLargeError as error:
        raise DataError(
            f"the {request.num_images} images of {request.config.source} must fit into the memory or into the cache of "
            f"decoded images, but they need {error.num_bytes / GIB:.1f} GiB, {max_bytes / GIB:.1f} GiB of memory are "
            f"free, and the cache cannot be used: {why}. Raise VITSEARCH_CACHE_GIB, or lower data.image_size or "
            "data.max_images."
        ) from error
    return LoadedRows(rows.tensor(), decoded)


class _Entry:
    """The place of one set in the cache."""

    def __init__(self, folder: Path, max_bytes: float, request: _Request, origins: Sequence[Origin]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._request = request
        self._origins = origins
        self._names = np.array([_digest(_full_name(origin)) for origin in origins], dtype="V16")
        self._settings = _digest(_pixel_settings(request)).hex()[:12]
        shape = [len(chosen.indices) for chosen in request.parts]
        self._set = _digest(json.dumps(shape).encode() + self._names.tobytes()).hex()
        self._file = folder / f"{self._settings}-{self._set}{_SUFFIX}"
        self._stamps = _stamps(origin.file for origin in origins)

    def load(self) -> LoadedRows:
        """The decoded images.

        Raises:
            OSError: The cache cannot be written.
            TooLargeError: The images are larger than the whole cache.
        """
        verifies = must_verify()
        found = None if verifies else self._valid(open_pixel_file(self._file))
        if found is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            watcher = decoding_watcher()
            if watcher is not None:
                watcher(0, len(self._origins))
            with FileLock(self._path(_LOCK)):
                found = None if verifies else self._valid(open_pixel_file(self._file))
                if found is None:
                    found = self._build({} if verifies else self._known_images())
        with contextlib.suppress(OSError):  # it was removed meanwhile, or belongs to somebody else
            os.utime(self._file)
        pixels = found.pixels
        share = _MEMORY_SHARE / available_cores()
        if pixels.numel() <= min(_COPIED_BYTES, share * available_memory_gib() * GIB):
            pixels = pixels.clone()
        facts = found.facts
        broken = {self._origins[position].name: reason for position, reason in facts["broken"]}
        rows = DecodedRows(found.records, facts["modes"], broken, facts["scales"], facts["remarks"], files={})
        return LoadedRows(pixels, rows, Notes(self._file, facts["build"]))

    def _path(self, suffix: str) -> Path:
        """A file beside the entry's own."""
        return self._folder / f".{self._file.stem}{suffix}"

    def _valid(self, found: PixelFile | None) -> PixelFile | None:
        """The file if it is of the same images, and these have not changed since."""
        if found is None or len(found.records) != len(self._origins) or not self._same(found.records).all():
            return None
        for position, path, *stamp in found.facts["other_files"]:
            if _stamps([Path(path)])[0].tolist() != stamp or self._changed(found.records[position], position):
                return None
        return found

    def _same(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each image is the one that a record describes."""
        same = (records["name"] == self._names) & (records["num_bytes"] == self._stamps[:, 0])
        return np.asarray(same & (records["changed_ns"] == self._stamps[:, 1]))

    def _build(self, known: Mapping[int, KnownImage]) -> PixelFile:
        request, unfinished = self._request, self._path(_UNFINISHED)
        channels = request.num_channels or 0
        with FileRows(
            unfinished, request.num_images, request.config.image_size, channels, max_bytes=self._max_bytes
        ) as rows:
            decoded = request.decode(rows, known)
            records = decoded.records
            records["name"], records["num_bytes"], records["changed_ns"] = self._names, *self._stamps.T
            positions = {origin.name: position for position, origin in enumerate(self._origins)}
            facts = {
                "build": uuid.uuid4().hex,
                "source": request.config.source,
                "modes": decoded.modes,
                "broken": [(positions[name], reason) for name, reason in decoded.broken.items()],
                "scales": decoded.scales,
                "remarks": decoded.remarks,
                "other_files": [
                    (position, str(path.absolute()), *_stamps([path])[0].tolist())
                    for position, path in decoded.files.items()
                    if path != self._origins[position].file
                ],
            }
            found = rows.publish(self._file, records, facts)
        evict(self._folder, self._max_bytes, keep=self._file)
        return found

    def _known_images(self) -> dict[int, KnownImage]:
        """Unchanged images in files with the same settings, by position."""
        positions = {name: position for position, name in enumerate(self._names.tolist())}
        known: dict[int, KnownImage] = {}
        files = sorted(self._folder.glob(f"{self._settings}-*{_SUFFIX}"), key=_last_use, reverse=True)
        for file in files[:_MAX_SOURCES]:
            found = open_pixel_file(file) if len(known) < len(positions) else None
            if found is None:
                continue
            external = {position for position, *_ in found.facts["other_files"]}
            pixels = found.pixels.numpy()
            for index, record in enumerate(found.records):
                position = positions.get(record["name"].tobytes())
                if position is None or position in known or record["row"] < 0 or index in external:
                    continue
                if record["is_deep"] or self._changed(record, position):
                    continue
                planes = pixels[record["row"], : record["num_channels"]]
                mode = found.facts["modes"][record["mode"]]
                known[position] = KnownImage(self._origins[position].name, record, mode, planes)
        return known

    def _changed(self, record: Any, position: int) -> bool:
        return (record["num_bytes"], record["changed_ns"]) != tuple(self._stamps[position])


def evict(folder: Path, max_bytes: float, *, keep: Path) -> None:
    """Remove unfinished files that no process is writing, and files in the order of their last use until the rest fits.

    A process that has opened a file can still use it.

    Args:
        folder: Folder of the cache.
        max_bytes: Largest size of all files together.
        keep: A file that is not removed.
    """
    for unfinished in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(Timeout, OSError), FileLock(unfinished.with_suffix(_LOCK), timeout=0):
            unfinished.unlink(missing_ok=True)
    files = sorted(folder.glob(f"*{_SUFFIX}"), key=_last_use)
    sizes = {file: _size(file) for file in files}
    total = sum(sizes.values())
    for file in files:
        if total <= max_bytes:
            return
        if file != keep:
            for one in (file, *folder.glob(f"{file.stem}.*{_NOTES}")):
                with contextlib.suppress(OSError):  # another process was faster, or it belongs to somebody else
                    one.unlink()
            total -= sizes[file]


def _pixel_settings(request: _Request) -> bytes:
    """What changes the pixels, beside the images themselves."""
    config = request.config
    settings = {
        "version": _VERSION,
        "pillow": PIL.__version__,
        "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        "image_size": config.image_size,
        "resize": config.resize,
        "background": config.background,
        "num_channels": request.num_channels,
        "scales": sorted(request.scales.items()),
    }
    return json.dumps(settings).encode()


def _full_name(origin: Origin) -> bytes:
    return f"{origin.file.absolute()}\0{origin.name}".encode(errors="surrogateescape")


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _stamps(files: Iterator[Path] | Sequence[Path]) -> NDArray[np.int64]:
    """Size in bytes and time of the last change in ns of each file, shape (N, 2); -1 if it cannot be read."""
    known: dict[Path, tuple[int, int]] = {}
    found = []
    for file in files:
        if file not in known:
            try:
                status = file.stat()
                known[file] = (status.st_size, status.st_mtime_ns)
            except OSError:
                known[file] = (-1, -1)
        found.append(known[file])
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _last_use(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
