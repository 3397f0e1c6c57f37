"""Git LFS pointers: small text files that a clone without Git LFS has in place of large files."""

from pathlib import Path
from typing import Any

_BEGINNING = b"version https://git-lfs"
POINTER = "it is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
"""The reason why such a file cannot be read, and the remedy."""


def is_lfs_pointer(content: Any) -> bool:
    """Whether a file, given by its path or its bytes, is a Git LFS pointer. Other objects are not."""
    if isinstance(content, bytes):
        return content.startswith(_BEGINNING)
    if not isinstance(content, Path):
        return False
    try:
        with content.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False
