"""Chooses where checkpoints and models are kept: in folders, or as objects of a store."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from trainers.storage.addresses import address_of
from trainers.storage.interface import Artifacts
from trainers.storage.local_folders import LocalFolders
from trainers.storage.mirrored_objects import MirroredObjects

_LOCAL = LocalFolders()
_objects = lru_cache(MirroredObjects)


def artifacts_at(place: Path) -> Artifacts:
    """The implementation for a path."""
    address = address_of(place)
    return _LOCAL if address is None else _objects(address.partition("://")[0])


def fetched(place: Path, *, without: Collection[str] = ()) -> Path:
    """The same path, after `Artifacts.fetch`."""
    artifacts_at(place).fetch(place, without=without)
    return place


def published(place: Path) -> Path:
    """The same path, after `Artifacts.publish`."""
    artifacts_at(place).publish(place)
    return place
