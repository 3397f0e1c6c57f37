"""Settings of the cache of decoded images, and the wishes of a command. Imports neither NumPy nor torch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

CACHE_VARIABLE = "VITSEARCH_IMAGE_CACHE"
"""Environment variable with limit and folder, as `GIB:FOLDER`. `use_cache` sets it; worker processes inherit it."""
DEFAULT_GIB = 32.0
DEFAULT_HOME = Path("~/.local/share/vitsearch")
FOLDER_NAME = "cache"
"""Name of the folder of the cache in the home folder."""
GIB = 2**30

OnDecoded = Callable[[int, int], None]
"""Called with the number of images that are decoded, and of all."""

_watcher: ContextVar[OnDecoded | None] = ContextVar("watcher", default=None)
_verifies: ContextVar[bool] = ContextVar("verifies", default=False)


class CacheSettings(NamedTuple):
    """Settings of the cache of decoded images."""

    folder: Path
    max_bytes: float
    """Largest size of all its files together; 0 switches it off."""


def use_cache(folder: Path, gib: float) -> None:
    """Keep decoded images in a folder, up to `gib` GiB, in this process and its child processes."""
    os.environ[CACHE_VARIABLE] = f"{gib!r}:{folder}"


def cache_settings() -> CacheSettings:
    """The settings of `use_cache`; without them, those of the environment variables of the command line."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        gib, _, folder = given.partition(":")
        return CacheSettings(Path(folder), float(gib) * GIB)
    home = Path(os.environ.get("VITSEARCH_HOME") or DEFAULT_HOME)
    folder = os.environ.get("VITSEARCH_CACHE_FOLDER") or str(home / FOLDER_NAME)
    return CacheSettings(
        Path(folder).expanduser().absolute(), float(os.environ.get("VITSEARCH_CACHE_GIB") or DEFAULT_GIB) * GIB
    )


@contextmanager
def watch_decoding(on_decoded: OnDecoded) -> Iterator[None]:
    """Call a function for each image that is decoded in this thread's calls inside the context."""
    token = _watcher.set(on_decoded)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def verified_cache() -> Iterator[None]:
    """Decode all images again inside the context, whatever the size and time of their files."""
    token = _verifies.set(True)
    try:
        yield
    finally:
        _verifies.reset(token)


def decoding_watcher() -> OnDecoded | None:
    """The function given to `watch_decoding`."""
    return _watcher.get()


def must_verify() -> bool:
    """Whether this is inside `verified_cache`."""
    return _verifies.get()
