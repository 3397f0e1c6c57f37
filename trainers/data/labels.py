"""From the labels of a table or a parquet file to class names and class numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from trainers.data.listing import DataError, few

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category")
"""Usual names of the column of labels, in lower case; the first that exists is used."""
UNLABELLED = None
"""The class of a row without a label."""
NO_LABEL = "no label"
"""The reason for leaving out such a row."""


class Labels(NamedTuple):
    """The labels of a file or of several."""

    names: tuple[str, ...]
    """Classes, in the order of their numbers."""
    values: list[str | None]
    """Class name of each row; `UNLABELLED` if it has none."""


def read_labels(where: str, values: Sequence[Any], declared: Sequence[str] | None = None) -> Labels:
    """Class names from labels as they are stored.

    Text, whole numbers and truth values are classes. A whole number is an index into the `declared` names, if there
    are any. A missing value, empty text and -1 mean that an image has no label.

    Args:
        where: File and column, for messages.
        values: Labels as Python objects.
        declared: Class names that the file declares, in the order of their numbers.

    Raises:
        DataError: The labels are several per image, or numbers to be predicted, or no index into the declared names.
    """
    found = [_class_of(where, row, value, declared) for row, value in enumerate(values)]
    if declared:
        return Labels(tuple(declared), found)
    return Labels(tuple(sort_names({name for name in found if name is not None})), found)


def sort_names(names: set[str]) -> list[str]:
    """Class names in alphabetic order; in numeric order if all are whole numbers."""
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def merge_names(several: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The classes of several files: those of the first, followed by further ones of the others."""
    return tuple(dict.fromkeys(name for names in several for name in names))


def class_numbers(names: Sequence[str]) -> dict[str, int]:
    """Class numbers by name."""
    return {name: number for number, name in enumerate(names)}


def similar_names(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in case, spaces, hyphens or underscores."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold().replace("_", "").replace("-", ""), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _class_of(where: str, row: int, value: Any, declared: Sequence[str] | None) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return UNLABELLED
    if isinstance(value, list | tuple | dict | set):
        raise DataError(
            f"every image must have one class, but row {row} of {where} has {value!r}: classification with several "
            "labels per image is not supported. Choose a column with one label per image."
        )
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise DataError(
                f"the labels of {where} must be classes, but row {row} has {value!r}: regression is not supported. "
                "Choose a column with classes, or group the numbers into classes."
            )
        value = int(value)
    if isinstance(value, int):
        if value == -1:
            return UNLABELLED
        if not 0 <= value < 2**63:
            raise DataError(
                f"each label of {where} must be a whole number from 0, or -1 for an image without a label, but row "
                f"{row} has {value!r}, as a missing label does in some programs. Relabel or remove the row."
            )
        if declared:
            if not 0 <= value < len(declared):
                raise DataError(
                    f"each label of {where} must be one of the {len(declared)} classes {few(list(declared))}, but row "
                    f"{row} has {value!r}. Remove or relabel the row."
                )
            return declared[value]
        return str(value)
    name = str(value)
    if declared and name not in declared:
        raise DataError(
            f"each label of {where} must be one of the {len(declared)} classes {few(list(declared))}, but row {row} "
            f"has {name!r}. Remove or relabel the row."
        )
    return name
