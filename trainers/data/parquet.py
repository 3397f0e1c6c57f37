"""Parquet files in the Hugging Face image/label form: one file, shards, or a clone of a repository of the hub."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from trainers.data.folders import count_hidden, is_ignored
from trainers.data.labels import LABEL_COLUMNS, NO_LABEL, Labels, class_numbers, merge_names, read_labels, sort_names
from trainers.data.lfs_pointers import POINTER, is_lfs_pointer
from trainers.data.listing import DataError, DataFindings, Item, Listing, Origin, few
from trainers.data.splits import SPLIT_COLUMNS, names_parts, no_part, part_of

_DEPTH = 3
"""Depth at which the files of a repository of the hub may lie, as in `default/train/0000.parquet`."""
_SHARD = re.compile(r"^.*-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?$")
"""Name of a shard, as on the hub, without its suffix."""


@dataclass(frozen=True, kw_only=True)
class ParquetListing:
    """Rows of parquet files."""

    where: str
    labels: tuple[int, ...]
    files: tuple[Path, ...]
    image_column: str
    rows: tuple[int, ...]
    """Row of each image, counted over all files, in ascending order."""

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """Encoded images, read batch by batch.

        Raises:
            DataError: A row has neither bytes nor the path of a file.
        """
        import pyarrow.parquet as pq

        wanted = iter([self.rows[index] for index in indices])
        row = next(wanted, None)
        offset = 0
        for path in self.files:
            if row is None:
                return
            first_of_file = offset
            file = pq.ParquetFile(path)
            if row >= offset + file.metadata.num_rows:
                offset += file.metadata.num_rows
                continue
            for batch in file.iter_batches(batch_size=1024, columns=[self.image_column]):
                column = batch.column(0)
                while row is not None and row < offset + len(batch):
                    name = _row_name(row - first_of_file, path)
                    yield Item(name, _content(name, path, column[row - offset].as_py()))
                    row = next(wanted, None)
                offset += len(batch)

    def origins(self, indices: Sequence[int]) -> list[Origin]:
        """The rows and their parquet files."""
        import pyarrow.parquet as pq

        ends = list(accumulate(pq.read_metadata(path).num_rows for path in self.files))
        found = []
        for index in indices:
            row = self.rows[index]
            number = bisect_right(ends, row)
            first_of_file = ends[number - 1] if number else 0
            found.append(Origin(_row_name(row - first_of_file, self.files[number]), self.files[number]))
        return found


def _row_name(row: int, path: Path) -> str:
    return f"row {row} of {path}"


def _content(name: str, path: Path, value: Any) -> bytes | Path:
    """The bytes of an image, or the file that a row names instead."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content:
        return bytes(content)
    named = value.get("path") if isinstance(value, dict) else None
    if named and (path.parent / named).is_file():
        return path.parent / str(named)
    raise DataError(f"{name} must contain the bytes of an image, but has none. Remove the row.")


def find_parquet(folder: Path, findings: DataFindings) -> dict[str, tuple[Path, ...]]:
    """The parquet files of a folder by part; empty if there are none.

    A file's part is told by the first word of its name, as in `train-00000-of-00002.parquet`, or by its folder, as in
    `default/train/0000.parquet`. Files without a part are the training part if no other files are.

    Raises:
        DataError: A shard is missing or exists twice, or the folder contains several data sets.
    """
    by_part: dict[str, list[Path]] = {}
    nameless: list[Path] = []
    for path in _files(folder, _DEPTH):
        part = _part_of_file(folder, path)
        if part is not None:
            by_part.setdefault(part, []).append(path)
        else:
            nameless.append(path)
    if nameless and "train" not in by_part:
        by_part["train"] = nameless
    else:
        for path in nameless:
            findings.skip("a parquet file that is no part", str(path))
    if by_part:
        count_hidden(folder, findings)
    for part, paths in by_part.items():
        _check_shards(folder, part, paths)
    return {part: tuple(paths) for part, paths in by_part.items()}


def list_parquet(
    where: str, files: Mapping[str, Sequence[Path]], findings: DataFindings
) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """Class names, and the labelled images of each part.

    Args:
        where: The source, for messages.
        files: Files by part. If the source is a single part, a column `split` divides it into several.
        findings: Receives what is ignored.

    Raises:
        DataError: A file is damaged, lacks a column, or has labels that are no classes.
    """
    tables = {part: [_read(path) for path in paths] for part, paths in files.items()}
    names = _class_names(tables)
    numbers = class_numbers(names)
    parts: dict[str, Listing] = {}
    for part, several in tables.items():
        chosen: dict[str, tuple[list[int], list[int]]] = {}
        row = 0
        for table in several:
            _check_known(table, numbers, names)
            divides = len(tables) == 1 and names_parts(table.splits)
            splits = table.splits if divides else [part] * len(table.labels.values)
            for value, split in zip(table.labels.values, splits, strict=True):
                mine = part_of(split) if split is not None else None
                if mine is None:
                    findings.skip(no_part(split), f"row {row} of {where}")
                elif value is None:
                    findings.skip(NO_LABEL, f"row {row} of {where}")
                else:
                    labels, rows = chosen.setdefault(mine, ([], []))
                    labels.append(numbers[value])
                    rows.append(row)
                row += 1
        image_column = several[0].image_column
        for mine, (labels, rows) in chosen.items():
            parts[mine] = ParquetListing(
                where=where if mine == "train" else f"{where} ({mine})",
                labels=tuple(labels),
                files=tuple(files[part]),
                image_column=image_column,
                rows=tuple(rows),
            )
    if not any(table.labels.values for several in tables.values() for table in several):
        raise DataError(f"{where} must contain images, but its parquet files have no rows. Use other files.")
    return names, parts


class _Table(NamedTuple):
    """What a file says beside its images."""

    path: Path
    image_column: str
    labels: Labels
    declares: bool
    """Whether the file itself names the classes and their order."""
    splits: list[str | None]
    """The part of each row; empty if the file has no such column."""


def _read(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        image, label, split = _columns(path, schema)
        columns = pq.read_table(path, columns=[label, *([split] if split else [])])
    except (pa.ArrowException, OSError) as error:
        if is_lfs_pointer(path):
            raise DataError(f"{path} must be a parquet file, but {POINTER}.") from error
        raise DataError(
            f"{path} must be a parquet file, but: {str(error).rstrip('.')}. Download or write it again."
        ) from error
    declared = _declared_names(schema, label)
    labels = read_labels(f"column {label} of {path}", columns.column(label).to_pylist(), declared)
    splits = [None if value is None else str(value) for value in columns.column(split).to_pylist()] if split else []
    return _Table(path, image, labels, declared is not None, splits)


def _class_names(tables: Mapping[str, Sequence[_Table]]) -> tuple[str, ...]:
    """Classes of the training part, or of all parts if a column divides the files."""
    several = tables.get("train") or [table for tables_of_part in tables.values() for table in tables_of_part]
    if any(table.declares for table in several):
        return merge_names([table.labels.names for table in several])
    return tuple(sort_names({name for table in several for name in table.labels.names}))


def _check_known(table: _Table, numbers: Mapping[str, int], names: Sequence[str]) -> None:
    for row, value in enumerate(table.labels.values):
        if value is not None and value not in numbers:
            raise DataError(
                f"each label of {table.path} must be one of the {len(names)} training classes {few(list(names))}, but "
                f"row {row} has {value!r}. Remove or relabel the row."
            )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if is_ignored(path.name):
            continue
        if path.suffix == ".parquet" and path.is_file():
            yield path
        elif depth > 1 and path.is_dir():
            yield from _files(path, depth - 1)


def _part_of_file(folder: Path, path: Path) -> str | None:
    """The part that the name or the folder of a file means, if any."""
    first_word = re.split(r"[-._]", path.name)[0]
    if part_of(first_word) is not None:
        return part_of(first_word)
    parents = path.relative_to(folder).parts[:-1]
    return next((part_of(parent) for parent in reversed(parents) if part_of(parent) is not None), None)


def _check_shards(folder: Path, part: str, paths: Sequence[Path]) -> None:
    """Check that shards are complete, and that the files belong to one data set."""
    folders = sorted({path.parent for path in paths})
    if len(folders) > 1:
        raise DataError(
            f"{folder} must contain one data set, but its {part} part lies in several folders: "
            f"{few([str(one.relative_to(folder)) for one in folders])}. Choose one of them as data.source."
        )
    by_count: dict[int, dict[int, list[Path]]] = {}
    for path in paths:
        match = _SHARD.match(path.stem)
        if match:
            by_count.setdefault(int(match["count"]), {}).setdefault(int(match["number"]), []).append(path)
    if not by_count:
        return
    if len(by_count) > 1 or sum(len(same) for one in by_count.values() for same in one.values()) < len(paths):
        raise DataError(
            f"the shards of the {part} part of {folder} must belong together, but the files are "
            f"{few([path.name for path in paths])}. Remove those of another version."
        )
    ((count, shards),) = by_count.items()
    doubled = [same for same in shards.values() if len(same) > 1]
    if doubled:
        raise DataError(
            f"every shard of {folder} must exist once, but {few([path.name for path in doubled[0]])} are the same "
            "one. Remove all but one."
        )
    missing = [f"{number:05d}-of-{count:05d}" for number in range(count) if number not in shards]
    if missing:
        raise DataError(
            f"{folder} must contain all {count} shards of the {part} part, but these are missing: {few(missing)}. "
            "Download them."
        )


def _columns(path: Path, schema: Any) -> tuple[str, str, str | None]:
    """Names of the image column, the label column and, if there is one, the column of parts."""
    images = [field.name for field in schema if _holds_images(field.type)]
    whole = [field.name for field in schema if field.name not in images and _may_be_label(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    split = next((name for name in texts if name.lower() in SPLIT_COLUMNS), None)
    declared = [name for name, kind in _features(schema).items() if kind.get("_type") == "ClassLabel" and name in whole]
    by_lower = {name.lower(): name for name in whole}
    usual = [by_lower[name] for name in LABEL_COLUMNS if name in by_lower]
    rest = [name for name in whole if name != split]
    label = next(iter([*usual, *declared, *(rest if len(rest) == 1 else ())]), None)
    if not images or label is None:
        missing = "an image column (a struct with `bytes`)" if not images else "a label column (classes, named `label`)"
        raise DataError(f"{path} must have {missing}, but its columns are {few(schema.names)}. Rename or add it.")
    return images[0], label, split


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _may_be_label(kind: Any) -> bool:
    """Whether a column may hold labels; several labels per image and numbers to predict are refused later, by name."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _may_be_label(kind.value_type)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(_is_text(kind) or numeric or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of the columns; empty if there is none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if not raw:
        return {}
    try:
        features = json.loads(raw)
    except (ValueError, RecursionError):  # text of another program
        return {}
    for key in ("info", "features"):
        features = features.get(key) if isinstance(features, dict) else None
    return (
        {name: kind for name, kind in features.items() if isinstance(kind, dict)} if isinstance(features, dict) else {}
    )


def _declared_names(schema: Any, label: str) -> tuple[str, ...] | None:
    names = _features(schema).get(label, {}).get("names")
    if names is None or names == []:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"the `names` of the column {label!r} in the metadata `huggingface` must be a list of texts, but are "
            f"{names!r:.60}. Write the file again with a ClassLabel, or without this metadata."
        )
    return tuple(names)
