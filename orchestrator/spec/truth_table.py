"""Tables of accuracies: JSON files of rows, each with an `arch` of one search space, and tables of trainings."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from orchestrator.spec.problems import found, plain
from orchestrator.spec.trainings_table import SUFFIX, read_recipe_accuracies, read_task
from orchestrator.spec.truth_error import TruthError
from plugins import registry
from plugins.regular_files import read_regular_file
from search_spaces.base import ImageTask, SearchSpace, Topology

ARCHITECTURE = "arch"
_MAX_BYTES = 256 * 1024 * 1024
_COSTS = {"params": "parameters", "macs": "macs"}
"""Keys of a row that are compared with our closed-form costs, and the matching attribute of `Costs`."""


class TableRow(NamedTuple):
    """One topology of a table."""

    number: int
    """Row number, starting at 1."""
    topology: Topology
    value: float
    """Value of the target, in the unit of the table; the mean if the topology was trained several times."""
    costs: Mapping[str, int]
    """`parameters` and `macs` from the table, if the row has them."""
    seeds: tuple[float, ...] = ()
    """Values of the trainings; empty for published accuracies."""


class TruthTable(NamedTuple):
    """The content of a table file."""

    path: Path
    space: str
    target: str
    rows: tuple[TableRow, ...]
    recipe: str | None = None
    """Recipe and epoch of a table of trainings; `None` for published accuracies."""
    epoch: int | None = None
    num_left_out: int = 0
    """Topologies without a value at this epoch."""
    num_images: int | None = None
    """Number of images that measured each value; `None` if the table does not say it."""

    @property
    def name(self) -> str:
        """Name of the file, with recipe and epoch of a table of trainings."""
        stem = self.path.stem
        return stem if self.recipe is None else f"{stem} ({self.recipe}, epoch {self.epoch})"

    def check(self, task: ImageTask) -> None:
        """Compare the costs in the table with those of our networks for a task.

        Raises:
            TruthError: A topology cannot be built, or its costs differ from those in its row.
        """
        space = registry.load("spaces", self.space)
        for row in self.rows:
            where = f"{row.topology.id} of {self.path}" if self.recipe else _where(row.number, self.path)
            problem = space.problem(row.topology, task)
            if problem:
                raise TruthError(f"{where} must fit images of {task.image_size} pixels, but {problem}")
            costs = space.costs(row.topology, task)._asdict()
            for name, stated in row.costs.items():
                if stated != costs[name]:
                    raise TruthError(
                        f"{where} must match our networks, but states {stated:,} {name}, while {row.topology.id} has "
                        f"{costs[name]:,} with {task.num_classes} classes and "
                        f"{task.in_channels} x {task.image_size} x {task.image_size} pixels. Correct the table, the "
                        "number of classes or the image size."
                    )


def read_truth_table(
    path: Path, *, space: str, target: str, recipe: str | None = None, epoch: int | None = None
) -> TruthTable:
    """Read a table without checking its costs.

    Args:
        path: A JSON file: a list of mappings, each with `arch` (the fields of a topology of the space, or its text)
            and a number under `target`; `params` and `macs` are optional. Or a table of trainings, a parquet file.
        space: Name of the search space.
        target: Key of the accuracies.
        recipe: Name of the recipe in a table of trainings; may be omitted if there is only one.
        epoch: Epoch of the accuracies in a table of trainings; by default the last one.

    Raises:
        TruthError: The first mistake.
    """
    if space not in registry.available("spaces"):
        raise TruthError(str(registry.UnknownPluginError("spaces", space)), key="space")
    if is_trainings_table(path):
        return _read_trainings(path, space=space, target=target, recipe=recipe, epoch=epoch)
    for key, value in {"recipe": recipe, "epoch": epoch}.items():
        if value is not None:
            raise TruthError(f"`{key}` is only for a table of trainings ({SUFFIX}), but {path} is not one.", key=key)
    rows = _load(path)
    search_space = registry.load("spaces", space)
    read: dict[str, TableRow] = {}
    for number, row in enumerate(rows, start=1):
        where = _where(number, path)
        if not isinstance(row, Mapping) or ARCHITECTURE not in row:
            raise TruthError(f"{where} must be a mapping with the key {ARCHITECTURE!r}, but it is {found(row)}.")
        topology = _topology(row[ARCHITECTURE], search_space, space, where)
        if topology.id in read:
            raise TruthError(
                f"each topology must have only one row, but {where} repeats row {read[topology.id].number} "
                f"({topology.id}). Remove one of them."
            )
        costs = {attribute: row[key] for key, attribute in _COSTS.items() if isinstance(row.get(key), int | float)}
        read[topology.id] = TableRow(number, topology, _value(row, target, where), costs)
    return TruthTable(path, space, target, tuple(read.values()))


def is_trainings_table(path: Path) -> bool:
    """Whether a file is a table of trainings, by its name."""
    return path.suffix == SUFFIX


def task_of_trainings(path: Path) -> ImageTask:
    """The image size, channels and classes for which the networks of a table of trainings were built.

    Raises:
        TruthError: The file cannot be read, or is not such a table.
    """
    return read_task(_read(path), where=str(path))


def _read_trainings(path: Path, *, space: str, target: str, recipe: str | None, epoch: int | None) -> TruthTable:
    read = read_recipe_accuracies(_read(path), where=str(path), space=space, target=target, recipe=recipe, epoch=epoch)
    search_space = registry.load("spaces", space)
    rows = tuple(
        TableRow(
            number=number,
            topology=_topology(one.topology, search_space, space, str(path)),
            value=sum(one.accuracies) / len(one.accuracies),
            costs={"parameters": one.parameters, "macs": one.macs},
            seeds=one.accuracies,
        )
        for number, one in enumerate(read.topologies, start=1)
    )
    return TruthTable(
        path,
        space,
        target,
        rows,
        recipe=read.recipe,
        epoch=read.epoch,
        num_left_out=read.num_left_out,
        num_images=read.num_images,
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        TruthError: The file cannot be read.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise TruthError(
            f"{path} must be a table, but it cannot be read ({error.strerror}; working directory "
            f"{Path.cwd()}). Correct the path."
        ) from None


def _load(path: Path) -> Sequence[Any]:
    try:
        rows = json.loads(_read(path))
    except (UnicodeDecodeError, RecursionError) as error:
        raise TruthError(
            f"{path} must be JSON text, but it cannot be parsed ({type(error).__name__}). Correct the file."
        ) from None
    except json.JSONDecodeError as error:
        raise TruthError(f"{path} must be JSON, but line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if not isinstance(rows, list) or not rows:
        raise TruthError(f"{path} must be a list of rows with at least one, but it is {found(rows)}.")
    return rows


def _topology(given: Any, space: SearchSpace, name: str, where: str) -> Topology:
    try:
        if isinstance(given, str):
            text = given.removeprefix(f"{name}:")
            return space.parse(text)
        return space.topology_type.model_validate(given)
    except ValidationError as error:
        raise TruthError(f"{where}: {ARCHITECTURE} must be of the space {name!r}, but {plain(error)}") from None
    except ValueError as error:
        raise TruthError(f"{where}: {ARCHITECTURE}: {error}") from None


def _value(row: Mapping[str, Any], target: str, where: str) -> float:
    numbers = [key for key, value in row.items() if _is_number(value) and key not in _COSTS]
    if target not in row:
        nearest = registry.nearest_name(target, numbers)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise TruthError(
            f"the target must be one of {', '.join(numbers) or '(none)'}, the numbers in {where}, but got "
            f"{target!r}.{hint}",
            key="target",
        )
    value = row[target]
    if not _is_number(value) or not math.isfinite(value):
        raise TruthError(f"{where}: {target} must be a finite number, but it is {found(value)}. Correct or remove it.")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _where(number: int, path: Path) -> str:
    return f"row {number} of {path}"
