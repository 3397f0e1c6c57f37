"""Random generators for samplers that are created for every suggestion."""

import numpy as np

_spare: list[np.random.RandomState] = []
"""Generators of deleted samplers. NumPy initialises a new one from system entropy, which is slow and not needed."""


def take_generator(seed: int) -> np.random.RandomState:
    """A generator equal to `numpy.random.RandomState(seed)`, for the exclusive use of the caller."""
    try:
        generator = _spare.pop()
    except IndexError:
        generator = np.random.RandomState()
    generator.seed(seed)
    return generator


def return_generator(generator: np.random.RandomState) -> None:
    """Make a generator that is no longer used available to other samplers."""
    _spare.append(generator)
