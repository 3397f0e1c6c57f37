"""Artifacts as objects of a store, with local copies of what is read and written.

A folder is complete once its manifest exists, which is created last. All objects of such a folder are written on the
condition that they do not exist. If one does, either a killed process has left it, or another attempt at the same
training has written it: the newest attempt removes it and tries again. So an attempt that was given up can at most add
what the next one replaces. It can remove something of the next one only if that begins, and writes, between the check
for newer attempts and the request that follows it at once: stores remove without a condition. The folder is then
incomplete, or its hashes differ, and training resumes from the checkpoint before.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256 as new_sha256
from pathlib import Path

from plugins.regular_files import read_regular_file
from trainers.storage.addresses import address_of
from trainers.storage.interface import Artifacts, always
from trainers.storage.local_copies import keep_copy, note_use
from trainers.storage.object_store import ObjectStoreError, StoredObject, object_store

_TRIES = 5
_SMALL = 1 << 16
"""Smaller files are read again instead of compared by time, because some stores know only seconds."""
_TOKEN_DIGITS = 19


class MirroredObjects(Artifacts):
    """Objects of a store; their paths are those of the local copies.

    Args:
        scheme: The scheme of their addresses.
    """

    def __init__(self, scheme: str) -> None:
        self._store = object_store(scheme)

    def commit(
        self, folder: Path, files: Mapping[str, bytes], *, manifest: str, check: Callable[[], None] = always
    ) -> None:
        for name in sorted(files, key=lambda one: one == manifest):
            self._create(folder / name, files[name], check, folder / manifest)
        written = self._below(folder)
        for name, content in files.items():
            if name != manifest and keep_copy(folder / name, content):
                _set_time(folder / name, written.get(name))

    def _create(self, file: Path, content: bytes, check: Callable[[], None], manifest: Path) -> None:
        key = _key(file)
        for _ in range(_TRIES):
            try:
                self._store.create(key, content)
            except FileExistsError:
                with suppress(FileNotFoundError):
                    # A lost answer makes the client repeat a request that has succeeded.
                    if len(content) < _SMALL and self._store.read(key) == content:
                        return
                check()
                self._store.remove([_key(manifest), key])
            else:
                return
        raise ObjectStoreError(
            16, "another process keeps writing this object, although no newer attempt has begun", address_of(file)
        )

    def committed(self, folder: Path, *, prefix: str, manifest: str) -> list[Path]:
        names = (key.split("/") for key in self._below(folder))
        return [folder / name[0] for name in names if name[1:] == [manifest] and name[0].startswith(prefix)]

    def committed_below(self, folder: Path, *, prefix: str, manifest: str) -> list[Path]:
        key = _key(folder)
        paths = (self._store.file_of(found, key, folder) for found in self._store.find(key))
        return sorted(path.parent for path in paths if path.name == manifest and path.parent.name.startswith(prefix))

    def folders(self, folder: Path, *, prefix: str) -> list[Path]:
        return [folder / name for name in self._store.folders(_key(folder)) if name.startswith(prefix)]

    def clear(self, folder: Path, *, prefix: str, manifest: str) -> None:
        found = self._below(folder)
        names = {key: key.partition("/")[0] for key in found if "/" in key}
        complete = {name for key, name in names.items() if key == f"{name}/{manifest}"}
        left = [key for key, name in names.items() if name.startswith(prefix) and name not in complete]
        self._store.remove([f"{_key(folder)}/{key}" for key in left])

    def read(self, file: Path, *, max_bytes: int, sha256: str | None = None) -> bytes:
        if sha256 is not None:
            with suppress(OSError):
                copy = read_regular_file(file, max_bytes=max_bytes)
                if new_sha256(copy).hexdigest() == sha256:
                    note_use(file)
                    return copy
        content = self._store.read(_key(file))
        if len(content) > max_bytes:
            raise ObjectStoreError(27, f"it must have at most {max_bytes:,} bytes", address_of(file))
        if sha256 is not None:
            keep_copy(file, content)
        return content

    def is_committed(self, folder: Path, *, manifest: str) -> bool:
        return self._store.info(_key(folder / manifest)) is not None

    def has(self, place: Path) -> bool:
        return bool(self._store.find(_key(place)))

    def size(self, file: Path) -> int:
        return self._info(file).num_bytes

    def _info(self, file: Path) -> StoredObject:
        found = self._store.info(_key(file))
        if found is None:
            raise ObjectStoreError(2, "there is no such object", address_of(file))
        return found

    def num_bytes(self, place: Path) -> int:
        return sum(info.num_bytes for info in self._store.find(_key(place)).values())

    def remove_folder(self, folder: Path, *, manifest: str) -> None:
        self._store.remove([f"{_key(folder)}/{manifest}"])
        self._store.remove_below(_key(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def remove_files(self, files: Sequence[Path]) -> None:
        if not files:
            return
        common = _key(Path(os.path.commonpath(files))) if len(files) > 1 else _key(files[0])
        found = self._store.find(common)
        self._store.remove([_key(file) for file in files if _key(file) in found])
        for file in files:
            file.unlink(missing_ok=True)

    def write_token(self, file: Path, token: int) -> None:
        """Each token is a separate object, so that a late writer can never replace a higher one."""
        folder = _key(file)
        with suppress(FileExistsError):
            self._store.create(f"{folder}/{token:0{_TOKEN_DIGITS}}", b"")
        self._store.remove([key for key in self._store.find(folder) if _token(key) < token])

    def newest_token(self, file: Path) -> int:
        return max(map(_token, self._store.find(_key(file))), default=0)

    def publish(self, place: Path) -> None:
        for file in _files(place):
            key = _key(file)
            self._store.write(key, file.read_bytes())
            _set_time(file, self._store.info(key))

    def fetch(self, place: Path, *, without: Collection[str] = ()) -> None:
        key = _key(place)
        for found, info in sorted(self._store.find(key).items()):
            file = place if found == key else self._store.file_of(found, key, place)
            if any(name.startswith(tuple(without)) for name in file.relative_to(place).parts[1:-1]):
                continue
            if _is_current(file, info):
                note_use(file)
            else:
                keep_copy(file, self._store.read(found), must=True)
                _set_time(file, info)

    def delete(self, place: Path) -> None:
        self._store.remove_below(_key(place))
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)

    def _below(self, folder: Path) -> dict[str, StoredObject]:
        """The objects below a folder, by the rest of their keys."""
        start = f"{_key(folder)}/"
        return {key.removeprefix(start): info for key, info in self._store.find(start.rstrip("/")).items()}


def _key(place: Path) -> str:
    address = address_of(place)
    assert address is not None, f"{place} must stand for an object"
    return address.partition("://")[2]


def _token(key: str) -> int:
    name = key.rpartition("/")[2]
    return int(name) if name.isdigit() else 0


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in sorted(place.rglob("*")) if path.is_file())
    else:
        yield place


def _is_current(file: Path, info: StoredObject) -> bool:
    if info.num_bytes < _SMALL or info.written_at is None:
        return False
    try:
        found = file.stat()
    except OSError:
        return False
    return found.st_size == info.num_bytes and abs(found.st_mtime - info.written_at) < 1e-3


def _set_time(file: Path, info: StoredObject | None) -> None:
    if info is not None and info.written_at is not None:
        with suppress(OSError):
            os.utime(file, (time.time(), info.written_at))
