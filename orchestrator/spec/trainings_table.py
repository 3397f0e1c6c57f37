"""Reads the accuracies of a recipe at an epoch from a table of trainings, which `python -m benchmarks.tables` makes."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.spec.truth_error import TruthError
from plugins.registry import nearest_name
from search_spaces.base import ImageTask

CARD_KEY = b"vitsearch.card"
"""Key of the card in the metadata of the parquet file, as in `vitsearch.tables`."""
SUFFIX = ".parquet"
_PARTS = {"val_accuracy": "validation", "test_accuracy": "test"}
"""Accuracies, and the part of the images that measured each; averages of weights have a suffix, as in
`val_accuracy.lawa-3`."""
_COLUMNS = ("topology", "recipe", "seed", "epoch", "space", "state", "parameters", "macs")
_NUM_SHOWN = 8


class TrainedTopology(NamedTuple):
    """The trainings of one topology under one recipe."""

    topology: str
    """As `space:text`."""
    accuracies: tuple[float, ...]
    """One per training, at the epoch."""
    parameters: int
    macs: int


class RecipeAccuracies(NamedTuple):
    """The accuracies of one recipe at one epoch."""

    recipe: str
    epoch: int
    topologies: tuple[TrainedTopology, ...]
    num_left_out: int
    """Topologies of the space and recipe without an accuracy at this epoch."""
    num_images: int
    """Number of images that measured each accuracy."""
    task: ImageTask


def read_task(content: bytes, *, where: str) -> ImageTask:
    """The image size, channels and classes of a table's networks.

    Raises:
        TruthError: The file is not a table of trainings.
    """
    return _task(_card(_open(content, where), where), where)


def read_recipe_accuracies(
    content: bytes, *, where: str, space: str, target: str, recipe: str | None, epoch: int | None
) -> RecipeAccuracies:
    """Read what the trainings of one recipe reached.

    Args:
        content: The parquet file.
        where: Its path, for messages.
        space: Name of the search space; topologies of others are left out.
        target: Column of the accuracy, such as `val_accuracy`, `test_accuracy` or `val_accuracy.lawa-3`.
        recipe: Name of the recipe; `None` takes the only one.
        epoch: Number of the epoch, starting at 1; `None` takes the last one.

    Raises:
        TruthError: The file is not such a table, or has no such accuracies.
    """
    file = _open(content, where)
    card = _card(file, where)
    names = file.schema_arrow.names
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise TruthError(f"{where} must have the column {missing[0]!r}, but lacks it. Make the table again.")
    _check_target(target, names)
    rows = _rows(file, target, where)
    _check_known("space", space, [row["space"] for row in rows], where)
    recipes = [row["recipe"] for row in rows]
    if recipe is None and len(set(recipes)) > 1:
        raise TruthError(
            f"a `recipe` must be named, since {where} has {_list(recipes)}. Name one of them.", key="recipe"
        )
    recipe = recipes[0] if recipe is None else recipe
    _check_known("recipe", recipe, recipes, where)
    rows = [row for row in rows if row["space"] == space and row["recipe"] == recipe]
    usable = [row for row in rows if row["state"] != "failed" and _is_measured(row[target])]
    measured = sorted({row["epoch"] for row in usable})
    if not measured:
        raise TruthError(
            f"{target} must be measured in a training of {space!r} with the recipe {recipe!r} that did not fail, but "
            f"{where} has no such value. Name another.",
            key="target",
        )
    epoch = measured[-1] if epoch is None else epoch
    if epoch not in measured:
        raise TruthError(
            f"`epoch` must be one at which {target} was measured, {_list(map(str, measured))} in {where}, but got "
            f"{epoch}. Name one of them.",
            key="epoch",
        )
    topologies = _by_topology(usable, target, epoch)
    part = card["images"][_PARTS[target.partition(".")[0]]]
    return RecipeAccuracies(
        recipe=recipe,
        epoch=epoch,
        topologies=topologies,
        num_left_out=len({row["topology"] for row in rows}) - len(topologies),
        num_images=int(part),
        task=_task(card, where),
    )


def _open(content: bytes, where: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(io.BytesIO(content))
    except (pa.ArrowException, OSError):
        raise TruthError(f"{where} must be a parquet file, but cannot be read as one. Correct the file.") from None


def _card(file: Any, where: str) -> Mapping[str, Any]:
    text = (file.schema_arrow.metadata or {}).get(CARD_KEY)
    try:
        card = json.loads(text or "null")
    except (ValueError, RecursionError):
        card = None
    images = card.get("images") if isinstance(card, dict) else None
    if not isinstance(card, dict) or not isinstance(images, dict):
        raise TruthError(
            f"{where} must be a table made by `python -m benchmarks.tables`, but has no card with its images. Give "
            "another file."
        )
    for part in _PARTS.values():
        if not isinstance(images.get(part), int) or images[part] < 1:
            raise TruthError(f"{where} must state the number of {part} images on its card, but does not.")
    return card


def _task(card: Mapping[str, Any], where: str) -> ImageTask:
    try:
        return ImageTask.model_validate(card["images"].get("task"))
    except ValueError:
        raise TruthError(
            f"{where} must state the image size, channels and classes on its card, but does not. Make the table again."
        ) from None


def _check_target(target: str, names: Sequence[str]) -> None:
    known = [name for name in names if name.partition(".")[0] in _PARTS]
    if target not in known:
        nearest = nearest_name(target, known)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise TruthError(
            f"the target must be one of {', '.join(known) or '(none)'}, but got {target!r}.{hint}", key="target"
        )


def _rows(file: Any, target: str, where: str) -> list[dict[str, Any]]:
    import pyarrow as pa

    try:
        rows: list[dict[str, Any]] = file.read(columns=[*_COLUMNS, target]).to_pylist()
    except (pa.ArrowException, OSError):
        raise TruthError(f"{where} must be a whole parquet file, but is damaged. Make or copy it again.") from None
    texts, numbers = ("topology", "recipe", "space"), ("seed", "epoch", "parameters", "macs")
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row[name], str) for name in texts) or not all(
            isinstance(row[name], int) for name in numbers
        ):
            raise TruthError(f"row {number} of {where} must have {', '.join(_COLUMNS)}, but lacks one of them.")
    if not rows:
        raise TruthError(f"{where} must have at least 1 training, but has none. Make the table again.")
    return rows


def _by_topology(rows: Sequence[Mapping[str, Any]], target: str, epoch: int) -> tuple[TrainedTopology, ...]:
    """The topologies with an accuracy at the epoch, from the rows of trainings that did not fail."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["epoch"] == epoch:
            found.setdefault(row["topology"], {})[row["seed"]] = row
    return tuple(
        TrainedTopology(
            topology=topology,
            accuracies=tuple(float(row[target]) for row in seeds.values()),
            parameters=next(iter(seeds.values()))["parameters"],
            macs=next(iter(seeds.values()))["macs"],
        )
        for topology, seeds in found.items()
    )


def _check_known(key: str, value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        nearest = nearest_name(value, known)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise TruthError(
            f"`{key}` must be one of the table's, {_list(known)} in {where}, but got {value!r}.{hint}", key=key
        )


def _list(names: Any) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - _NUM_SHOWN} more" if len(distinct) > _NUM_SHOWN else ""
    return f"{', '.join(distinct[:_NUM_SHOWN])}{more}"


def _is_measured(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
