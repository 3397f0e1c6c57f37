"""What the options of `correlate` and `discover` say about each of their tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orchestrator.cli.console import fail
from orchestrator.spec.truth_error import TruthError
from orchestrator.spec.truth_table import is_trainings_table, task_of_trainings

IMAGE_SIZE, NUM_CLASSES = 224, 100
"""Defaults for published tables."""
Value = TypeVar("Value")


class TableNetworks(NamedTuple):
    """For what images the networks of the tables were built."""

    image_size: int
    num_classes: int


def networks_of(tables: Sequence[Path], image_size: int | None, num_classes: int | None) -> TableNetworks:
    """The given size and classes; by default, those of the first table of trainings. Exits if it cannot be read."""
    trainings = next((table for table in tables if is_trainings_table(table)), None)
    if trainings is None or (image_size is not None and num_classes is not None):
        return TableNetworks(image_size or IMAGE_SIZE, num_classes or NUM_CLASSES)
    try:
        task = task_of_trainings(trainings)
    except TruthError as error:
        fail(f"--table: {error}", status=2)
    return TableNetworks(image_size or task.image_size, num_classes or task.num_classes)


def one_each(option: str, given: Sequence[Value], tables: Sequence[Path], *, kind: str = "--table") -> list[Value]:
    """One value per table; a single value holds for all tables. Exits if the number is another."""
    if not given:
        fail(f"{option} must be given with --table, but is missing. Add it.", status=2)
    if len(given) == 1:
        return list(given) * len(tables)
    if len(given) != len(tables):
        fail(
            f"{option} must be given once, or once for each {kind} ({len(tables)}), but was given {len(given)} times.",
            status=2,
        )
    return list(given)


def optional_facts(
    tables: Sequence[Path],
    test_images: Sequence[int],
    recipes: Sequence[str],
    epochs: Sequence[int],
    *,
    is_further: bool = False,
) -> list[dict[str, Any]]:
    """For each table, the number of images, recipe and epoch, by their key in a study file; `None` if not given.

    Recipes and epochs are those of the tables of trainings only.

    Args:
        tables: The tables.
        test_images: One number per table, or a single one for all.
        recipes: One per table of trainings, or a single one for all.
        epochs: Likewise.
        is_further: Whether other tables were given as well, to which recipes and epochs may belong.
    """
    trainings = [table for table in tables if is_trainings_table(table)]
    for option, given in {"--recipe": recipes, "--epoch": epochs}.items():
        if given and not trainings and not is_further:
            fail(f"{option} is only for a table of trainings (.parquet), but there is none. Remove it.", status=2)
    kind = "table of trainings"
    each = zip(
        one_each("--recipe", recipes or [None], trainings, kind=kind),
        one_each("--epoch", epochs or [None], trainings, kind=kind),
        strict=True,
    )
    images = one_each("--test-images", test_images or [None], tables)
    found = []
    for table, num_images in zip(tables, images, strict=True):
        recipe, epoch = next(each) if is_trainings_table(table) else (None, None)
        found.append({"num_images": num_images, "recipe": recipe, "epoch": epoch})
    return found
