"""Moves of evolutionary searches in a space whose dimensions are independent: mutation, crossover, neighbours."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def mutated(
    values: Mapping[str, Value], choices: Mapping[str, Sequence[Value]], rng: random.Random
) -> dict[str, Value]:
    """The values with another option in one dimension; dimension and option are drawn uniformly.

    Args:
        values: The value of each dimension.
        choices: The options of each dimension that may change.
        rng: Draws the dimension, then the option.
    """
    name = rng.choice([name for name, options in choices.items() if len(options) > 1])
    return {**values, name: rng.choice([option for option in choices[name] if option != values[name]])}


def crossed(first: Mapping[str, Value], second: Mapping[str, Value], rng: random.Random) -> dict[str, Value]:
    """Each dimension from either parent."""
    return {name: rng.choice((value, second[name])) for name, value in first.items()}


def single_changes(values: Mapping[str, Value], choices: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """All values that differ in exactly one dimension."""
    for name, options in choices.items():
        for option in options:
            if option != values[name]:
                yield {**values, name: option}
