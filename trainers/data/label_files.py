"""Image files whose labels are in a table beside them: `labels.csv`, or `metadata.csv` and `.jsonl` as on the hub."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.data.folders import HIDDEN, is_ignored, is_image_name
from trainers.data.labels import LABEL_COLUMNS, NO_LABEL, class_numbers, read_labels
from trainers.data.lfs_pointers import POINTER, is_lfs_pointer
from trainers.data.listing import DataError, DataFindings, FileListing, Listing, few
from trainers.data.splits import SPLIT_COLUMNS, names_parts, no_part, part_of

_NAMES = ("labels.csv", "metadata.csv", "metadata.jsonl", "labels.jsonl")
_FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
_MAX_MISSING = 20


def find_label_file(folder: Path) -> Path | None:
    """The table of labels in a folder, if there is one."""
    if not folder.is_dir():
        return None
    by_name = {path.name.lower(): path for path in folder.iterdir() if path.is_file()}
    return next((by_name[name] for name in _NAMES if name in by_name), None)


def find_part_tables(folder: Path) -> dict[str, Path]:
    """Tables named after parts, such as `train.csv` and `val.csv`."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".jsonl") and path.is_file())
    return {part: path for path in found if (part := part_of(path.stem)) is not None}


def list_label_files(
    where: str, tables: Mapping[str, Path], findings: DataFindings
) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """Class names, and the labelled images of each part.

    Args:
        where: The source, for messages.
        tables: Tables by part. A column `split` divides a single one into parts.
        findings: Receives what is ignored.

    Raises:
        DataError: A table lacks a column, names files that do not exist, or has labels that are no classes.
    """
    rows = [(part, path, row) for part, path in tables.items() for row in _read(path)]
    labels = read_labels(where, _plain_labels([label for _, _, (_, label, _) in rows]))
    numbers = class_numbers(labels.names)
    divides = names_parts(split for _, _, (_, _, split) in rows)
    chosen: dict[str, list[tuple[Path, int]]] = {}
    missing: list[str] = []
    known: dict[Path, str] = {}
    listed: set[Path] = set()
    exists = _Existing()
    for (part, path, (name, _, split)), value in zip(rows, labels.values, strict=True):
        file = path.parent / name
        if "\\" in name and file not in exists:  # written on Windows
            file = path.parent / name.replace("\\", "/")
        listed.add(file)
        mine = part_of(split) if divides and split is not None else part
        if mine is None:
            findings.skip(no_part(split), name)
        elif value is None:
            findings.skip(NO_LABEL, name)
        elif file not in exists:
            missing.append(name)
        elif file in known:
            if known[file] != value:
                raise DataError(
                    f"every image must have one class, but {path} gives {name} both {known[file]!r} and {value!r}: "
                    "classification with several labels per image is not supported. Keep one of the rows."
                )
            findings.skip("a file that is listed twice", name)
        else:
            known[file] = value
            chosen.setdefault(mine, []).append((file, numbers[value]))
    if missing:
        raise DataError(
            f"every file that {few([str(path) for path in tables.values()])} names must exist, but {len(missing)} do "
            f"not: {few(missing, _MAX_MISSING)}. Correct the names, or remove the rows."
        )
    _count_unlisted({path.parent for path in tables.values()}, listed, findings)
    return labels.names, {
        part: FileListing(
            where=where if part == "train" else f"{where} ({part})",
            files=tuple(file for file, _ in found),
            labels=tuple(number for _, number in found),
        )
        for part, found in chosen.items()
    }


class _Existing:
    """The files that exist. Folders are listed once, because asking for each file takes long on a server."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def __contains__(self, file: Path) -> bool:
        folder = file.parent
        if folder not in self._names:
            self._names[folder] = _names_of_files(folder)
        return file.name in self._names[folder] or file.is_file()  # a file system may ignore case


def _names_of_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:  # it does not exist
        return set()


def _read(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    """File name, label and, if there is such a column, part of each row."""
    if is_lfs_pointer(path):
        raise DataError(f"{path} must be a table of labels, but {POINTER}.")
    try:
        rows = _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{path} must be a table of labels, but: {error}. Write it again.") from error
    if not rows:
        raise DataError(f"{path} must list images, but has no rows. Add them.")
    columns = {str(name).strip().lower(): name for name in rows[0]}
    file, label, split = (
        next((columns[name] for name in names if name in columns), None)
        for names in (_FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    if file is None or label is None:
        missing = "file_name" if file is None else "label"
        raise DataError(f"{path} must have a column `{missing}`, but its columns are {few(list(columns))}. Rename one.")
    for number, row in enumerate(rows):
        name = row.get(file)
        if not name:
            raise DataError(f"each row of {path} must name a file, but row {number} does not. Remove it.")
        part = row.get(split) if split is not None else None
        yield str(name), row.get(label), None if part in (None, "") else str(part)


def _plain_labels(labels: list[Any]) -> list[Any]:
    """Labels of a text table: as numbers if they are fractions, otherwise as text, without `.0` and without -1."""
    given = [label for label in labels if label not in (None, "")]
    try:
        numbers = [float(label) for label in given if isinstance(label, str)]
    except ValueError:
        return labels
    if len(numbers) < len(given):
        return labels
    if not all(number.is_integer() for number in numbers):
        return [None if label in (None, "") else float(label) for label in labels]
    texts = [str(label or "").removesuffix(".0") for label in labels]
    return [None if text in ("", "-1") else text for text in texts]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=header.count)
        return list(csv.DictReader(file, delimiter=delimiter))


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        return [json.loads(line) for line in file if line.strip()]


def _count_unlisted(folders: set[Path], listed: set[Path], findings: DataFindings) -> None:
    """Count images beside the tables that no row names, and hidden files."""
    for folder in sorted(folders):
        for root, _, names in os.walk(folder):
            is_hidden = any(is_ignored(part) for part in Path(root).relative_to(folder).parts)
            for path in (Path(root) / name for name in sorted(names)):
                if path in listed:
                    continue
                if is_hidden or is_ignored(path.name):
                    findings.skip(HIDDEN, str(path))
                elif is_image_name(path.name):
                    findings.skip("not in the table of labels", str(path))
