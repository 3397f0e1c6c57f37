"""Finds accuracies that are given twice: a copy of a table, whatever its path, its unit and the order of its rows."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MIN_EQUAL = 4
"""Shared topologies from which equal accuracies are no chance."""
MIN_ORDERED = 20
"""Shared topologies from which the same order of different accuracies is no chance."""
_MIN_DIFFERENT = 10
"""Different accuracies that such an order must have."""
_FACTORS = (1.0, 100.0, 0.01)
"""Fractions and percent."""

Accuracies = Mapping[str, float]
"""The accuracy of each topology, by its id."""


class NamedAccuracies(NamedTuple):
    """Accuracies with their title for people."""

    title: str
    accuracies: Accuracies


def repetition(mine: NamedAccuracies, others: Sequence[NamedAccuracies]) -> str | None:
    """The mistake of accuracies that repeat others, which would count the same trainings twice.

    Accuracies of other trainings of the same topologies (another target, recipe or seed) are no repetition.

    Args:
        mine: The accuracies to check.
        others: The accuracies given before.

    Returns:
        The mistake as a sentence without subject; `None` if there is none.
    """
    for other in others:
        alike = _alike(mine.accuracies, other.accuracies)
        if alike:
            return (
                f"must be other data than {other.title}, but {alike}. The same trainings would count twice. Remove "
                "one of the two."
            )
    return None


def accuracies_digest(accuracies: Accuracies) -> str:
    """Digest of accuracies in any order, by which a score declares that it was fitted to them (`fitted_to`)."""
    lines = sorted(f"{topology} {value:.6g}" for topology, value in accuracies.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _alike(one: Accuracies, other: Accuracies) -> str | None:
    pairs = [(one[topology], value) for topology, value in other.items() if topology in one]
    if len(pairs) < MIN_EQUAL or len({value for value, _ in pairs}) < 2:
        return None
    shared = f"{len(pairs)} topologies"
    if any(all(math.isclose(factor * a, b, rel_tol=1e-9) for a, b in pairs) for factor in _FACTORS):
        return f"has the same accuracies of {shared}"
    num_different = min(len({pair[side] for pair in pairs}) for side in (0, 1))
    if len(pairs) >= MIN_ORDERED and num_different >= _MIN_DIFFERENT and _never_disagree(pairs):
        return f"ranks {shared} in exactly the same order"
    return None


def _never_disagree(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether no two topologies are in opposite orders; equal accuracies agree with any order."""
    highest = before = -math.inf
    last = -math.inf
    for a, b in sorted(pairs):
        if a > last:
            before, last = highest, a
        if b < before:
            return False
        highest = max(highest, b)
    return True
