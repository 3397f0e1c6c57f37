"""Parts of a data set: names that mean training, validation and test, and random splits."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.config import DataConfig
from trainers.data.listing import DataError

Indices = NDArray[np.int64]

PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""The part that a folder, a file or a value of a column means by its name in lower case."""


SPLIT_COLUMNS = ("split", "part", "fold")
"""Names of a column that divides a data set into parts, in lower case."""


def no_part(name: str | None) -> str:
    """The reason for leaving out an image whose `split` means no part."""
    return f"split {name!r}: neither training, validation nor test"


def part_of(name: str) -> str | None:
    """The part that a name means, in any case: `train`, `validation`, `test` or `None`."""
    return PART_NAMES.get(name.strip().lower())


def names_parts(values: Iterable[str | None]) -> bool:
    """Whether the values of a column divide a data set into parts: one of them must mean training."""
    return any(value is not None and part_of(value) == "train" for value in values)


def split_indices(
    labels: Sequence[int], config: DataConfig, *, own_test: bool, own_validation: bool = False
) -> tuple[Indices, Indices, Indices]:
    """Split images into training, validation and test parts, stratified by class.

    Args:
        labels: Class of each image.
        config: Fractions, size limit and seed.
        own_test: Whether the source has its own test part, so that no images are held out for testing.
        own_validation: Whether the source has its own validation part, so that no images are held out for validation.

    Returns:
        Three disjoint arrays of ascending indices.

    Raises:
        DataError: A part would be too small to contain every class.
    """
    classes = np.asarray(labels)
    rest: Indices = np.arange(len(classes))
    test: Indices = np.arange(0)
    fraction = config.validation
    if not own_test:
        test, rest = draw(rest, classes, round(config.test * len(rest)), config, part="test")
        fraction = config.validation / (1 - config.test)
    if config.max_images is not None and config.max_images < len(rest):
        rest, _ = draw(rest, classes, config.max_images, config, part="max_images")
    if own_validation:
        return rest, np.arange(0), test
    validation, train = draw(rest, classes, round(fraction * len(rest)), config, part="validation")
    return train, validation, test


def draw(
    indices: Indices, labels: NDArray[Any], count: int, config: DataConfig, *, part: str
) -> tuple[Indices, Indices]:
    """A stratified sample of `count` indices, and the remaining indices; both in ascending order."""
    classes, sizes = np.unique(labels[indices], return_counts=True)
    if sizes.min() < 2 or min(count, len(indices) - count) < len(classes):
        raise DataError(
            f"data.{part} must leave at least one image of each of the {len(classes)} classes on both sides of the "
            f"split, but it takes {count} of {len(indices)} images, and the smallest class has {sizes.min()}. "
            f"Change data.{part} or data.max_images, or add images."
        )
    is_chosen = stratified_sample(labels[indices], count, seed=config.split_seed)
    return np.sort(indices[is_chosen]), np.sort(indices[~is_chosen])


def stratified_sample(labels: NDArray[Any], count: int, *, seed: int) -> NDArray[np.bool_]:
    """Draw images so that each class has the same share in the sample and in the rest, up to rounding.

    The parts of a study must never change. They were first drawn with scikit-learn, whose import takes longer than the
    rest of loading small data, so that its algorithm and its random numbers are repeated here.

    Args:
        labels: Class of each image.
        count: Size of the sample.
        seed: Seed of the draw.

    Returns:
        Whether each image is in the sample.

    Source: scikit-learn 1.9, `StratifiedShuffleSplit`; BSD-3-Clause.
    """
    rng = np.random.RandomState(seed)  # numpy promises never to change its numbers
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    num_others = _share(sizes, len(labels) - count, rng)
    num_chosen = _share(sizes - num_others, count, rng)
    chosen = np.zeros(len(labels), dtype=bool)
    for members, others, size in zip(
        np.split(np.argsort(classes, kind="stable"), np.cumsum(sizes)[:-1]), num_others, num_chosen, strict=True
    ):
        shuffled = members[rng.permutation(len(members))]
        chosen[shuffled[others : others + size]] = True
    return chosen


def _share(sizes: NDArray[np.int64], count: int, rng: np.random.RandomState) -> NDArray[np.int64]:
    """Number of draws from each class, in proportion to its size; ties of the remainders are broken at random."""
    exact = sizes / sizes.sum() * count
    draws: Indices = np.floor(exact).astype(np.int64)
    remainders = exact - draws
    missing = count - int(draws.sum())
    for value in np.sort(np.unique(remainders))[::-1]:
        if missing <= 0:
            break
        (tied,) = np.where(remainders == value)
        added = min(len(tied), missing)
        draws[rng.choice(tied, size=added, replace=False)] += 1
        missing -= added
    return draws
