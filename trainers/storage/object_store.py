"""Objects of a store that fsspec speaks to. Nothing is cached, so each answer is the state of the store."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

_TIMES = ("LastModified", "updated", "last_modified", "mtime")
"""Names under which stores tell when an object was written."""
_BATCH = 1000


class ObjectStoreError(OSError):
    """A store does not answer, or refuses something. `strerror` describes it, as for errors of the system."""

    @property
    def reason(self) -> str:
        """What must hold, and what was found."""
        return f"{self.filename} must be readable and writable, but {self.strerror}."

    def __str__(self) -> str:
        return (
            f"{self.reason} Check the network, and the endpoint and credentials in the environment, then run the same "
            "command again."
        )


class ObjectNameError(ObjectStoreError):
    """An object below a folder has a key that is not the name of a file below a folder."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EINVAL, "its key is not the name of a file below that folder", address)

    @property
    def reason(self) -> str:
        return f"{self.filename} must lie below the artifact root like a file in a folder, but {self.strerror}."

    def __str__(self) -> str:
        return f"{self.reason} No study wrote this object: remove it from the store, or move it elsewhere."


class StoredObject(NamedTuple):
    """What a store tells about an object."""

    num_bytes: int
    written_at: float | None
    """In seconds since 1970; `None` if the store does not tell."""


class ObjectStore:
    """A store, and its objects by key, such as `bucket/folder/name`.

    Args:
        scheme: The scheme of its addresses, such as `s3`. Credentials and the endpoint come from the environment.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    def file_of(self, key: str, prefix: str, folder: Path) -> Path:
        """The file in a folder for an object below a prefix. Keys are not trusted: others may write to the store.

        Raises:
            ObjectNameError: The key leads out of the folder, or is not the name of a file.
        """
        before, _, rest = key.partition(f"{prefix}/")
        file = folder / rest
        if (
            before
            or {"", ".", ".."} & set(rest.split("/"))
            or "\0" in rest
            or not file.resolve().is_relative_to(folder.resolve())  # links may lie in the folder
        ):
            raise ObjectNameError(f"{self._scheme}://{key}")
        return file

    def read(self, key: str) -> bytes:
        """The content of an object.

        Raises:
            FileNotFoundError: There is none of that key.
            ObjectStoreError: The store does not answer.
        """
        with self._errors(key):
            content: bytes = self._files.cat_file(key)
            return content

    def download(self, key: str, file: Path) -> None:
        """Write the content of an object, of any size, to a file.

        Raises:
            FileNotFoundError: There is none of that key.
            ObjectStoreError: The store does not answer.
        """
        with self._errors(key):
            self._files.get_file(key, str(file))

    def upload(self, file: Path, key: str) -> None:
        """Write an object, of any size, from a file, or replace it. Raises ObjectStoreError."""
        with self._errors(key):
            self._files.put_file(str(file), key)

    def write(self, key: str, content: bytes) -> None:
        """Write an object, or replace it. Raises ObjectStoreError."""
        with self._errors(key, FileExistsError):
            self._files.pipe_file(key, content)

    def create(self, key: str, content: bytes) -> None:
        """Write an object that does not exist.

        Raises:
            FileExistsError: It exists.
            ObjectStoreError: The store does not answer.
        """
        with self._errors(key, FileExistsError):
            self._files.pipe_file(key, content, mode="create")

    def find(self, prefix: str) -> dict[str, StoredObject]:
        """All objects whose key is `prefix`, or lies below it as in a folder. Raises ObjectStoreError.

        Empty objects that stand for folders, which consoles of stores create, are left out.
        """
        with self._errors(prefix):
            try:
                found = self._files.find(prefix, detail=True)
            except FileNotFoundError:  # also a bucket that does not exist
                return {}
            below = {
                str(key): StoredObject(int(info.get("size") or 0), _written_at(info))
                for key, info in found.items()
                if info.get("type") != "directory" and (key == prefix or str(key).startswith(f"{prefix}/"))
            }
            return {key: info for key, info in below.items() if info.num_bytes or not key.endswith("/")}

    def folders(self, prefix: str) -> list[str]:
        """Names below `prefix` that are like folders. Raises ObjectStoreError."""
        with self._errors(prefix):
            try:
                found = self._files.ls(prefix, detail=True)
            except FileNotFoundError:
                return []
            return sorted(
                str(info["name"]).rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"
            )

    def info(self, key: str) -> StoredObject | None:
        """What the store tells about an object; `None` if there is none. Raises ObjectStoreError."""
        with self._errors(key):
            try:
                info = self._files.info(key)
            except FileNotFoundError:
                return None
            if info.get("type") == "directory":
                return None
            return StoredObject(int(info.get("size") or 0), _written_at(info))

    def remove(self, keys: list[str]) -> None:
        """Remove objects, if they exist. Raises ObjectStoreError."""
        for key in keys:
            with self._errors(key):
                try:
                    self._files.rm_file(key)
                except FileNotFoundError:
                    continue

    def remove_below(self, prefix: str) -> None:
        """Remove all objects that `find` finds. Raises ObjectStoreError."""
        keys = sorted(self.find(prefix))
        for start in range(0, len(keys), _BATCH):
            with self._errors(prefix):
                self._files.rm(keys[start : start + _BATCH])

    @property
    def _files(self) -> Any:
        """fsspec keeps one instance for each process and thread."""
        import fsspec

        return fsspec.filesystem(self._scheme, use_listings_cache=False)

    @contextmanager
    def _errors(self, key: str, *answers: type[OSError]) -> Iterator[None]:
        """Convert the errors of all kinds of stores into one of ours, except those that are answers."""
        try:
            yield
        except Exception as error:
            if isinstance(error, answers or FileNotFoundError):
                raise
            address = f"{self._scheme}://{key}"
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise ObjectStoreError(errno.EIO, f"the store does not do what was asked: {reason}", address) from error


@lru_cache
def object_store(scheme: str) -> ObjectStore:
    """The store for addresses of a scheme."""
    return ObjectStore(scheme)


def _written_at(info: dict[str, Any]) -> float | None:
    value = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None
