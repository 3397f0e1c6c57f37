"""Class folders: which files they contain, which entries are ignored, and which folders are parts of a data set."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath

from trainers.data.listing import DataError, DataFindings, FileListing, few

_IGNORED = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found"})
"""Folders and files that operating systems and servers leave behind, in lower case. Names that start with a dot are
ignored, too."""
_UNREADABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow recognises, but cannot decode without other programs."""
HIDDEN = "hidden, or left behind by a system"
_NOWHERE = "a link that leads nowhere"


@cache
def image_suffixes() -> frozenset[str]:
    """All suffixes, in lower case and with the dot, whose formats the installed Pillow decodes."""
    from PIL import Image

    formats = Image.registered_extensions()  # also fills `Image.OPEN`
    readable = Image.OPEN.keys() - _UNREADABLE_FORMATS
    return frozenset(suffix for suffix, kind in formats.items() if kind in readable)


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or was left behind by a system."""
    return name.startswith(".") or name.lower() in _IGNORED


def is_image_name(name: str) -> bool:
    """Whether Pillow reads files with the suffix of a name."""
    return PurePath(name).suffix.lower() in image_suffixes()


def visible_folders(folder: Path) -> list[Path]:
    """Sub-folders that are not ignored, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name))


def list_class_folders(
    folder: Path, findings: DataFindings, *, leave_out: frozenset[Path] = frozenset(), class_names: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], FileListing]:
    """Class names and image files of a folder with one sub-folder per class.

    Links to files and folders are followed. What a class reaches in several ways is listed once.

    Args:
        folder: The folder.
        findings: Receives what is ignored.
        leave_out: Sub-folders that are not classes.
        class_names: Classes of the training part. Default: the names of the sub-folders.

    Raises:
        DataError: There are no class folders or no images, or a class is unknown.
    """
    found = []
    for path in visible_folders(folder):
        if path in leave_out:
            continue
        if _leads_up(path):
            findings.skip("a link to a folder above it", str(path))
        else:
            found.append(path)
    if not found:
        raise DataError(
            f"{folder} must contain one sub-folder per class, labels.csv or parquet files, but it has none of them. "
            "Put the images of each class into a separate folder."
        )
    names = class_names or tuple(path.name for path in found)
    files: list[Path] = []
    labels: list[int] = []
    for path in found:
        if path.name not in names:
            raise DataError(
                f"{path} must be one of the training classes {few(names)}, but it is not. Rename or move it."
            )
        images = images_below(path, findings)
        files += images
        labels += [names.index(path.name)] * len(images)
    _count_rest(folder, findings)
    if not files:
        raise DataError(
            f"{folder} must contain images in its sub-folders {few(names)}, but there are none with a suffix that "
            "Pillow reads, such as .png or .jpg. Add images or choose another folder."
        )
    return names, FileListing(where=str(folder), labels=tuple(labels), files=tuple(files))


def loose_images(folder: Path) -> list[Path]:
    """Images directly in a folder."""
    visible = [path for path in folder.iterdir() if not is_ignored(path.name)]
    return sorted(path for path in visible if is_image_name(path.name) and path.is_file())


def images_below(folder: Path, findings: DataFindings) -> list[Path]:
    """Images at any depth below a folder, sorted; each once, although links may lead there several times.

    Args:
        folder: The folder.
        findings: Receives what is ignored.
    """
    return sorted(_image_files(folder, findings))


def _count_rest(folder: Path, findings: DataFindings) -> None:
    """Count what lies in a folder beside its class folders."""
    for path in sorted(folder.iterdir()):
        if is_ignored(path.name):
            _count_hidden(path, findings)
        elif _is_broken_link(path):
            findings.skip(_NOWHERE, str(path))
        elif is_image_name(path.name) and not path.is_dir():
            findings.skip("not in a class folder", str(path))


def _image_files(folder: Path, findings: DataFindings) -> Iterator[Path]:
    """Image files at any depth; each file and folder once, although links may lead there several times."""
    seen_folders: set[tuple[int, int]] = set()
    seen_files: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if not _is_new(here, seen_folders):
            findings.skip("a link to a folder that was already read", str(here))
            continue
        links_last = sorted(os.scandir(here), key=lambda entry: (entry.is_symlink(), entry.name))
        for entry in links_last:
            path = Path(entry.path)
            if is_ignored(entry.name):
                _count_hidden(path, findings)
            elif _is_broken_link(path):
                findings.skip(_NOWHERE, str(path))
            elif _leads_up(path):
                findings.skip("a link to a folder above it", str(path))
            elif entry.is_dir():
                waiting.insert(0, path) if entry.is_symlink() else waiting.append(path)
            elif not is_image_name(entry.name):
                suffix = path.suffix.lower()
                findings.skip(f"not an image ({suffix})" if suffix else "not an image (no suffix)", str(path))
            elif not entry.is_file():
                findings.skip("a device or a pipe", str(path))
            elif not _is_new(path, seen_files):
                findings.skip("a link to a file that was already read", str(path))
            else:
                yield path


def _is_new(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a file or folder was not met before, under whatever name. It is remembered."""
    status = path.stat()
    place = (status.st_dev, status.st_ino)
    if place in seen:
        return False
    seen.add(place)
    return True


def _is_broken_link(path: Path) -> bool:
    if not path.is_symlink():
        return False
    try:
        path.stat()
    except OSError:  # the target does not exist, or the link leads to itself
        return True
    return False


def _leads_up(path: Path) -> bool:
    """Whether a link leads to a folder that contains it, so that it would read other classes, too."""
    return path.is_symlink() and path.is_dir() and path.resolve() in (path.parent.resolve() / path.name).parents


def count_hidden(folder: Path, findings: DataFindings) -> None:
    """Count the hidden entries directly in a folder."""
    for path in sorted(folder.iterdir()):
        if is_ignored(path.name):
            _count_hidden(path, findings)


def _count_hidden(path: Path, findings: DataFindings) -> None:
    """Count files that are ignored because they, or a folder above them, are hidden."""
    if not path.is_dir() or path.is_symlink():
        findings.skip(HIDDEN, str(path))
        return
    for root, _, names in os.walk(path):
        for name in sorted(names):
            findings.skip(HIDDEN, str(Path(root) / name))
