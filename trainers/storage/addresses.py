"""Addresses of object stores, and the local paths that stand for them.

    s3://bucket/lab/studies/...   ->   CACHE/vitsearch-objects/s3/bucket/lab/studies/...

A path of this form names an object in every process and on every machine, wherever rows, tasks and events carry it. The
file of that name, if there is one, is a local copy.
"""

import re
from importlib.util import find_spec
from pathlib import Path

_FOLDER = "vitsearch-objects"
_ADDRESS = re.compile(r"([a-z][a-z0-9]*)://(.+)")
_UNSUITABLE = {
    "file": "name the folder without file://",
    "local": "name the folder without local://",
    "memory": "objects in the memory of a process are lost with it",
    "http": "web servers store nothing",
    "https": "web servers store nothing",
}
_EXTRAS = {"s3": "s3"}
"""Extras of vitsearch with the package for a scheme."""


class AddressError(ValueError):
    """An address is not that of an object store in which artifacts can be kept."""


def local_place(address: str, cache_folder: Path) -> Path:
    """The local path that stands for an address.

    Raises:
        AddressError: The address cannot be used; the message states what must hold.
    """
    found = _ADDRESS.fullmatch(address)
    parts = [part for part in found[2].split("/") if part] if found else []
    if found is None or not parts or {".", ".."} & set(parts) or "::" in address:
        raise AddressError("must be a folder, or the address of an object store such as s3://bucket/folder")
    if re.search(r"[@?#\\]|%[0-9A-Fa-f]{2}", found[2]):
        raise AddressError(
            "must be the address of an object store without a user, password or options (set credentials in the "
            "environment that the store's own tools read, such as AWS_ACCESS_KEY_ID)"
        )
    scheme = found[1]
    if scheme in _UNSUITABLE:
        raise AddressError(f"must be a folder or the address of an object store ({_UNSUITABLE[scheme]})")
    problem = _missing_package(scheme)
    if problem is not None:
        raise AddressError(problem)
    return cache_folder.joinpath(_FOLDER, scheme, *parts)


def address_of(path: Path) -> str | None:
    """The address that a local path stands for; `None` for a file or folder that stands for itself."""
    parts = path.parts
    if _FOLDER not in parts:
        return None
    scheme, *rest = parts[parts.index(_FOLDER) + 1 :] or ("",)
    return f"{scheme}://{'/'.join(rest)}" if rest else None


def copies_of(path: Path) -> Path:
    """Folder of the local copies to which a path that stands for an object belongs."""
    parts = path.parts
    return Path(*parts[: parts.index(_FOLDER) + 1])


def moved_to(path: Path, cache_folder: Path) -> Path:
    """The path in another folder of local copies, for the same object; other paths are unchanged."""
    return path if address_of(path) is None else cache_folder / _FOLDER / path.relative_to(copies_of(path))


def place_text(path: Path) -> str:
    """The address that a path stands for, or the path, for messages."""
    return address_of(path) or str(path)


def _missing_package(scheme: str) -> str | None:
    from fsspec.registry import known_implementations

    known = known_implementations.get(scheme)
    if known is None:
        return f"must be the address of a store that fsspec knows, such as s3:// or gs://, which {scheme}:// is not"
    if find_spec(known["class"].partition(".")[0]) is not None:
        return None
    package = known["class"].partition(".")[0]
    command = f"pip install 'vitsearch[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else f"pip install {package}"
    return f"needs the package {package} for {scheme}:// (install it with: {command})"
