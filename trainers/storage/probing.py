"""Checks that an object store can keep artifacts, before anything else is written to it."""

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.storage.addresses import address_of
from trainers.storage.object_store import ObjectStore, ObjectStoreError, object_store


def check_store(root: Path) -> None:
    """Check that a store takes, lists and removes objects, and does not write one that exists if asked not to.

    Args:
        root: A path that stands for an address of the store.

    Raises:
        ObjectStoreError: It does not; `strerror` says what is missing.
    """
    with mark(root) as key:
        store, address = _store_at(root)
        if not sees_mark(root, key):
            raise ObjectStoreError(errno.EIO, "an object must be listed as soon as it is written, but is not", address)
        try:
            store.create(key, b"again")
        except FileExistsError:
            return
        raise ObjectStoreError(
            errno.ENOTSUP,
            "it must refuse to write an object that exists if asked to (`If-None-Match: *`), because only then can a "
            "worker that was given up not overwrite the checkpoints of its successor, but it does not",
            address,
        )


@contextmanager
def mark(root: Path) -> Iterator[str]:
    """Keep a new object in a store inside the context; gives its key. Raises ObjectStoreError."""
    store, address = _store_at(root)
    key = f"{address.partition('://')[2]}/seen-{uuid.uuid4().hex}"
    store.create(key, b"vitsearch checks that it can use this place\n")
    try:
        yield key
    finally:
        store.remove([key])


def sees_mark(root: Path, key: str) -> bool:
    """Whether this machine finds the object of `mark`. Raises ObjectStoreError."""
    return key in _store_at(root)[0].find(key)


def _store_at(root: Path) -> tuple[ObjectStore, str]:
    address = address_of(root)
    assert address is not None, f"{root} must stand for an address"
    return object_store(address.partition("://")[0]), address
