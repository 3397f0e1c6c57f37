"""Local copies of objects: at most as many bytes as the cache of decoded images may have."""

import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from trainers.data.cache_settings import cache_settings
from trainers.storage.addresses import copies_of

_SUFFIX = ".safetensors"
"""Only weights are large. All else stays, so that pictures and reports remain files."""
_IN_USE_S = 600.0
"""A copy that was used more recently stays, because another process may be about to open it."""
_SHARE = 0.05
"""Share of the limit that is written between two searches for old copies."""

_lock = threading.Lock()
_written = {"num_bytes": float("inf")}


def keep_copy(file: Path, content: bytes, *, must: bool = False) -> bool:
    """Write a local copy of an object. If it is not written, an older one is removed.

    Args:
        file: Its place.
        content: Its content.
        must: Whether the copy is needed as a file; otherwise, an unusable disk is ignored.

    Returns:
        Whether it was written.

    Raises:
        OSError: It is needed and cannot be written.
    """
    limit = cache_settings().max_bytes
    if not must and (not limit or len(content) > limit):
        _forget(file)
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as part:
                part.write(content)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError:
        if must:
            raise
        _forget(file)
        return False
    with _lock:
        _written["num_bytes"] += len(content)
        if _written["num_bytes"] < _SHARE * limit:
            return True
        _written["num_bytes"] = 0
    remove_old_copies(copies_of(file), limit, keep=file)
    return True


def _forget(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)


def note_use(file: Path) -> None:
    """Mark a copy as used now."""
    with suppress(OSError):
        os.utime(file, (time.time(), file.stat().st_mtime))


def remove_old_copies(folder: Path, max_bytes: float, *, keep: Path | None = None, in_use_s: float = _IN_USE_S) -> None:
    """Remove copies of weights in the order of their last use, until the rest fits.

    Args:
        folder: Folder of all copies.
        max_bytes: Largest size of all copies of weights together.
        keep: A copy that is not removed.
        in_use_s: Copies that were used in the last `in_use_s` seconds are not removed.
    """
    found: list[tuple[float, int, Path]] = []
    for file in folder.rglob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process has removed it
            status = file.stat()
            found.append((status.st_atime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    now = time.time()
    for used_at, size, file in sorted(found):
        if total <= max_bytes or used_at > now - in_use_s:
            return
        if file != keep:
            with suppress(OSError):
                file.unlink()
            total -= size
