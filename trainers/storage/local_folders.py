"""Artifacts in folders of this machine, or of a file system that several machines share."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from plugins.regular_files import read_regular_file
from trainers.storage.interface import Artifacts, always

_TEMPORARY = ".part-"


class LocalFolders(Artifacts):
    """A folder gets its name by a rename when it is complete, and loses it by one before it is removed."""

    def commit(
        self,
        folder: Path,
        files: Mapping[str, bytes],
        *,
        manifest: str,
        check: Callable[[], None] = always,  # noqa: ARG002
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.clear(folder.parent, prefix="", manifest=manifest)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent))
        whole, older = temporary / "new", temporary / "old"
        try:
            whole.mkdir()
            for name, data in files.items():
                (whole / name).write_bytes(data)
            if folder.exists():
                folder.replace(older)
            whole.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # `clear` retries if this fails

    def committed(self, folder: Path, *, prefix: str, manifest: str) -> list[Path]:  # noqa: ARG002
        return list(folder.glob(f"{prefix}*"))

    def committed_below(self, folder: Path, *, prefix: str, manifest: str) -> list[Path]:
        return sorted(found.parent for found in folder.rglob(f"{prefix}*/{manifest}"))

    def folders(self, folder: Path, *, prefix: str) -> list[Path]:
        return sorted(folder.glob(f"{prefix}*"))

    def clear(self, folder: Path, *, prefix: str, manifest: str) -> None:  # noqa: ARG002
        for path in folder.glob(f"{_TEMPORARY}*"):
            with suppress(FileNotFoundError):  # its owner has just removed it, or part of it
                shutil.rmtree(path)

    def read(self, file: Path, *, max_bytes: int, sha256: str | None = None) -> bytes:  # noqa: ARG002
        return read_regular_file(file, max_bytes=max_bytes)

    def is_committed(self, folder: Path, *, manifest: str) -> bool:  # noqa: ARG002
        return folder.is_dir()

    def has(self, place: Path) -> bool:
        return place.exists()

    def size(self, file: Path) -> int:
        return file.stat().st_size

    def num_bytes(self, place: Path) -> int:
        files = place.rglob("*") if place.is_dir() else [place]
        return sum(file.stat().st_size for file in files if file.is_file())

    def remove_folder(self, folder: Path, *, manifest: str) -> None:  # noqa: ARG002
        trash = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent))
        folder.replace(trash / folder.name)
        shutil.rmtree(trash)

    def remove_files(self, files: Sequence[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)

    def write_token(self, file: Path, token: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_name(f".{file.name}-{token}")
        whole.write_text(str(token), encoding="ascii")
        whole.replace(file)

    def newest_token(self, file: Path) -> int:
        try:
            return int(file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):  # the first attempt, or a file damaged by a power failure
            return 0

    def publish(self, place: Path) -> None:
        """A local file is visible as it is."""

    def fetch(self, place: Path, *, without: Collection[str] = ()) -> None:
        """A local file is readable as it is."""

    def delete(self, place: Path) -> None:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            with suppress(OSError):
                place.unlink(missing_ok=True)
