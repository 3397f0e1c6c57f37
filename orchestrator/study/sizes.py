"""Space of files and objects. A file that has several names (hard links) counts once."""

import os
from collections.abc import Iterable
from pathlib import Path

from trainers.storage.addresses import address_of
from trainers.storage.artifacts import artifacts_at


def size_of(places: Iterable[Path]) -> int:
    """Bytes of all files in some folders, or of files. Missing places count as empty; links are not followed.

    Raises:
        trainers.storage.object_store.ObjectStoreError: A store does not answer.
    """
    seen: set[tuple[int, int]] = set()
    return sum(
        _size(place, seen) if address_of(place) is None else artifacts_at(place).num_bytes(place) for place in places
    )


def human_size(num_bytes: float) -> str:
    """Bytes as text with three digits, such as `3.46 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _size(place: Path, seen: set[tuple[int, int]]) -> int:
    try:
        if place.is_dir() and not place.is_symlink():
            with os.scandir(place) as entries:
                return sum(_size(Path(entry.path), seen) for entry in entries)
        status = place.lstat()
    except OSError:  # removed meanwhile, or not ours to read
        return 0
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return 0
    seen.add(key)
    return status.st_size
