"""Reads files that somebody else may have prepared: regular files only, and no more than a given size."""

import errno
import os
import stat
from pathlib import Path

_UNSTATED_SIZE = 1 << 16


class UnsuitableFileError(OSError):
    """A path leads to a device, a pipe or a folder, to a file that is too large, or is not a path at all.

    `strerror` describes it, as for other errors of the system, so that one handler serves both.
    """


def require_regular_file(path: Path) -> None:
    """Check that a path leads to a regular file, before another library opens it and waits for a pipe.

    Raises:
        UnsuitableFileError: It leads to something else.
        OSError: It leads nowhere.
    """
    _check_kind(path.stat(), path)


def read_regular_file(path: Path, *, max_bytes: int) -> bytes:
    """The content of a file. Links are followed; opening a pipe does not wait for its writer.

    Args:
        path: The file.
        max_bytes: Largest size, in bytes.

    Raises:
        UnsuitableFileError: It is not a regular file, or too large, or grows meanwhile.
        OSError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte
        raise UnsuitableFileError(errno.EINVAL, f"a path cannot be like this ({error})") from None
    try:
        found = os.fstat(descriptor)
        _check_kind(found, path)
        if found.st_size > max_bytes:
            raise UnsuitableFileError(
                errno.EFBIG, f"it must have at most {max_bytes:,} bytes, but has {found.st_size:,}", str(path)
            )
        with open(descriptor, "rb", closefd=False) as file:
            # Python reserves as much memory as may be read; files of some file systems state no size.
            content = file.read(min(max_bytes, max(found.st_size, _UNSTATED_SIZE)))
            if file.read(1):
                raise UnsuitableFileError(
                    errno.EFBIG,
                    f"it must not grow while it is read, but has more than {len(content):,} bytes",
                    str(path),
                )
        return content
    finally:
        os.close(descriptor)


def _check_kind(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise UnsuitableFileError(errno.EINVAL, f"it must be a regular file, but is {what}", str(path))
