"""Accuracies that are given twice are found, however the copy looks; other trainings are not taken for a copy."""

import math
import random

import pytest

from orchestrator.evaluation.repeated_truths import NamedAccuracies, repetition

RNG = random.Random(0)
ACCURACIES = {f"pit:{number}": 60 + 5 * RNG.random() for number in range(100)}
FIRST = NamedAccuracies("acc of pit", ACCURACIES)


def told(accuracies: dict[str, float]) -> str | None:
    return repetition(NamedAccuracies("acc of other", accuracies), [NamedAccuracies("acc of third", {}), FIRST])


def shuffled(accuracies: dict[str, float]) -> dict[str, float]:
    return dict(random.Random(1).sample(list(accuracies.items()), len(accuracies)))


@pytest.mark.parametrize(
    "copy",
    [
        dict(ACCURACIES),
        shuffled(ACCURACIES),
        {name: value / 100 for name, value in ACCURACIES.items()},
        dict(list(ACCURACIES.items())[:5]) | {"pit:other": 3.0},
    ],
)
def test_equal_accuracies_are_a_copy_in_any_order_unit_and_number(copy: dict[str, float]) -> None:
    count = len(copy.keys() & ACCURACIES.keys())
    assert told(copy) == (
        f"must be other data than acc of pit, but has the same accuracies of {count} topologies. The same trainings "
        "would count twice. Remove one of the two."
    )


@pytest.mark.parametrize(
    "change", [lambda value: round(value, 1), math.exp, lambda value: value**2 - 3], ids=["rounded", "exp", "square"]
)
def test_the_same_order_of_many_topologies_is_a_copy(change) -> None:
    assert "ranks 100 topologies in exactly the same order" in str(told({k: change(v) for k, v in ACCURACIES.items()}))


def test_other_trainings_of_the_same_topologies_are_no_copy() -> None:
    again = {name: value + 0.05 * RNG.random() for name, value in ACCURACIES.items()}
    assert told(again) is None


def test_few_shared_topologies_few_different_accuracies_and_a_constant_are_no_copy() -> None:
    few = dict(list(ACCURACIES.items())[:3])
    assert told({**few, "pit:a": 1.0, "pit:b": 2.0}) is None
    assert told({name: float(value > 62.5) for name, value in ACCURACIES.items()}) is None
    constant = NamedAccuracies("acc of flat", dict.fromkeys(ACCURACIES, 50.0))
    assert repetition(constant, [constant]) is None
    ordered = {name: 2 * value for name, value in list(ACCURACIES.items())[:12]}
    assert told(ordered) is None
