"""Files of MLflow's runs that lie on this machine: weights are kept once, under two names."""

import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

WEIGHTS_SUFFIX = ".safetensors"
"""Files with this suffix are written once and never changed, so that two names may share their content."""


def local_path(uri: str) -> Path | None:
    """The path of an artifact address on this machine; `None` for other addresses."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(uri) if parsed.scheme == "" else None


def link_tree(source: Path, folder: Path) -> None:
    """Put a file, or the files of a folder, into a folder, which is made if missing. Older files are replaced.

    Weights become hard links, if the file system has these and both places are on it. All else is copied.
    """
    files = [path for path in sorted(source.rglob("*")) if path.is_file()] if source.is_dir() else [source]
    root = source if source.is_dir() else source.parent
    for file in files:
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == WEIGHTS_SUFFIX:
            replace_by_link(target, file)
        else:
            _replace_by_copy(target, file)


def replace_by_link(target: Path, source: Path) -> None:
    """Make `target` another name of `source`, or a copy if the file system has no hard links."""
    if target.exists() and target.samefile(source):
        return
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as part:
        name = Path(part) / target.name
        try:
            os.link(source, name)
        except OSError:  # another file system, or one without hard links, or a file of another user
            shutil.copyfile(source, name)
        name.replace(target)


def _replace_by_copy(target: Path, source: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as part:
        name = Path(part) / target.name
        shutil.copyfile(source, name)
        name.replace(target)
