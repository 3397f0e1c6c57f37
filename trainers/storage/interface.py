"""What a place for checkpoints and models must be able to do."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

MANIFEST = "manifest.json"
"""The file by which a checkpoint is complete."""


def always() -> None:
    """The check of a commit that nobody else may write."""


class Artifacts(Protocol):
    """Files of trainings and models, named by local paths.

    Errors are `OSError`, with a reason in `strerror`.
    """

    def commit(
        self, folder: Path, files: Mapping[str, bytes], *, manifest: str, check: Callable[[], None] = always
    ) -> None:
        """Write a folder of files, atomically: it counts from the moment when its manifest is written.

        Args:
            folder: The folder. One with this name is replaced.
            files: The content of each file.
            manifest: Name of the file by whose presence the folder is complete.
            check: Raises an error if this process may no longer write. Called before anything is replaced that another
                process may have written in the meantime.
        """
        ...

    def committed(self, folder: Path, *, prefix: str, manifest: str) -> list[Path]:
        """Complete folders directly below a folder whose name begins with `prefix`, in no particular order."""
        ...

    def committed_below(self, folder: Path, *, prefix: str, manifest: str) -> list[Path]:
        """Like `committed`, at any depth, sorted."""
        ...

    def folders(self, folder: Path, *, prefix: str) -> list[Path]:
        """Folders directly below a folder whose name begins with `prefix`, complete or not."""
        ...

    def clear(self, folder: Path, *, prefix: str, manifest: str) -> None:
        """Remove what interrupted commits and removals have left directly below a folder.

        Only the newest attempt at a training may call it, when it begins: it does not see who is writing.
        """
        ...

    def read(self, file: Path, *, max_bytes: int, sha256: str | None = None) -> bytes:
        """The content of a file, or a local copy of it with this sha256.

        Raises:
            OSError: It cannot be read, or is larger than `max_bytes`.
        """
        ...

    def is_committed(self, folder: Path, *, manifest: str) -> bool:
        """Whether there is a complete folder of this name."""
        ...

    def has(self, place: Path) -> bool:
        """Whether there is a file or folder of this name."""
        ...

    def size(self, file: Path) -> int:
        """Bytes of a file."""
        ...

    def num_bytes(self, place: Path) -> int:
        """Bytes of a file, or of all files in a folder; 0 if there is none."""
        ...

    def remove_folder(self, folder: Path, *, manifest: str) -> None:
        """Remove a folder so that it is never taken for a complete one meanwhile."""
        ...

    def remove_files(self, files: Sequence[Path]) -> None:
        """Remove files of one folder, or folders beside each other, if they exist."""
        ...

    def write_token(self, file: Path, token: int) -> None:
        """Keep a token, for `newest_token`. Tokens only rise."""
        ...

    def newest_token(self, file: Path) -> int:
        """The highest token that was written; 0 if there is none."""
        ...

    def publish(self, place: Path) -> None:
        """Make a file, or the files of a folder, that were written locally, visible on all machines."""
        ...

    def fetch(self, place: Path, *, without: Collection[str] = ()) -> None:
        """Make the current content of a file, or of a folder, readable as local files.

        Args:
            place: The file or folder. Nothing happens if it does not exist.
            without: Beginnings of names; folders below those in `place` that have such a name are left out.
        """
        ...

    def delete(self, place: Path) -> None:
        """Delete a file, or a folder with everything in it. Errors of the file system are ignored."""
        ...
