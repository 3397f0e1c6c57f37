"""Passes with given shares of the classes, for curricula that mix classes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from plugins.protocols import Signal, class_values

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def counts_of_shares(size: int, shares: "Tensor", generator: "torch.Generator") -> "Tensor":
    """Whole numbers, (K,), int64, that add up to `size` and differ from `size * shares` by less than 1.

    The visits that remain after rounding down go to the largest remainders, and among equal ones at random.

    Args:
        size: Number of visits.
        shares: Shares of the classes, (K,), float64; they add up to 1.
        generator: Generator of random numbers.
    """
    import torch

    exact = size * shares
    counts = exact.floor().long()
    missing = size - int(counts.sum())
    order = torch.randperm(len(shares), generator=generator)
    # Rounding makes equal remainders differ in the last bits.
    remainders = ((exact - counts) * 1e9).round()[order]
    counts[order[torch.argsort(remainders, descending=True, stable=True)[:missing]]] += 1
    return counts


def visits_of_classes(counts: "Tensor", labels: "Tensor", classes: "Tensor", generator: "torch.Generator") -> "Tensor":
    """Visits in random order, `counts` of each class; a class repeats an image only after all of its images.

    Args:
        counts: Number of visits of each class, (K,).
        labels: Class of each image, (N,).
        classes: The classes, (K,); each has images.
        generator: Generator of random numbers.
    """
    import torch

    visits = [
        images_in_rounds((labels == label).nonzero()[:, 0], int(count), generator)
        for label, count in zip(classes, counts, strict=True)
    ]
    indices = torch.cat(visits)
    return indices[torch.randperm(len(indices), generator=generator)]


def images_in_rounds(images: "Tensor", count: int, generator: "torch.Generator") -> "Tensor":
    """`count` of the images, in random order; each occurs equally often, up to one."""
    import torch

    rounds = [torch.randperm(len(images), generator=generator) for _ in range(-(-count // len(images)))]
    return images[torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[:count]]


def whole_passes(num_epochs: float) -> tuple[float, ...]:
    """Passes over the whole training set, then a smaller one for the remaining fraction of an epoch."""
    whole = math.floor(num_epochs)
    rest = num_epochs - whole
    return (1.0,) * whole + ((rest,) if rest else ())


def recent_class_values(past: Sequence[Mapping[str, float]], signal: Signal, classes: "Tensor") -> "Tensor":
    """Values of a signal that is measured for each class, shape (T, K), float64, of `T` epochs and `K` classes.

    A class without validation images has the mean of the others.
    """
    import torch

    rows = []
    for known in past:
        found = class_values(known, signal)
        own = [found[label] for label in classes.tolist() if label in found]
        mean = sum(own) / len(own) if own else 0.0
        rows.append([found.get(label, mean) for label in classes.tolist()])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(classes))
