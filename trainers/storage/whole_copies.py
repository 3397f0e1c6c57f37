"""Copies of everything below an address of an object store, as files of a folder, and back."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from trainers.storage.addresses import address_of
from trainers.storage.object_store import ObjectStore, object_store

_AT_A_TIME = 8


def has_objects(place: Path) -> bool:
    """Whether there is an object below the address that a path stands for. Raises ObjectStoreError."""
    store, key = _store_of(place)
    return bool(store.find(key))


def save_objects(place: Path, folder: Path) -> int:
    """Copy all objects below the address that a path stands for into a new folder.

    Objects that are removed meanwhile are left out.

    Args:
        place: The path that stands for the address.
        folder: Folder for the copies, each with the rest of its key as name.

    Returns:
        The number of objects that the store listed.

    Raises:
        OSError: The store does not answer, a file cannot be written, or a key is not the name of a file.
    """
    store, prefix = _store_of(place)
    files = {key: store.file_of(key, prefix, folder) for key in sorted(store.find(prefix))}
    _in_parallel(partial(_save, store, key, file) for key, file in files.items())
    return len(files)


def load_objects(folder: Path, place: Path) -> None:
    """Write the files that `save_objects` made as objects below an address. Raises OSError."""
    store, prefix = _store_of(place)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    _in_parallel(partial(store.upload, file, f"{prefix}/{file.relative_to(folder).as_posix()}") for file in files)


def _save(store: ObjectStore, key: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # a running study has removed an old checkpoint
        store.download(key, file)


def _store_of(place: Path) -> tuple[ObjectStore, str]:
    address = address_of(place)
    assert address is not None, f"{place} must stand for an address"
    scheme, _, key = address.partition("://")
    return object_store(scheme), key


def _in_parallel(tasks: Iterable[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        pending = [threads.submit(task) for task in tasks]
        try:
            for one in pending:
                one.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
