"""The epochs at which an averaging stage lets a training end: one, a choice, a range, or that of a stopping stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.problems import found, range_problem
from search_spaces.dimensions import Choice, Integer, Real, Scalar, parse_dimension

KEY = "averaging.stop_at"
"""Name of the dimension."""
BY_CRITERION = "stopping"
"""The epoch at which the criterion of the preceding stopping stage ends the trial."""


def check_stop_at(raw: Any) -> Any:
    """The value of `stop_at` in a study file, with lists as tuples.

    Raises:
        ValueError: It is neither an epoch nor a choice or range of epochs.
    """
    options = raw if isinstance(raw, list | tuple) else [raw]
    try:
        if isinstance(raw, Mapping):
            if not {"low", "high"} & set(raw):
                raise ValueError(f"must be an epoch, a list of epochs or a range {{low, high}}, but got {found(raw)}.")
            options = [getattr(parse_dimension(KEY, raw, number=int), "low", 0)]
        elif isinstance(raw, list | tuple):
            parse_dimension(KEY, raw)
    except ValidationError as error:
        raise ValueError(range_problem(error).message) from error
    for option in options if raw is not None else ():
        if option != BY_CRITERION and (type(option) is not int or option < 1):
            raise ValueError(
                f"must be an epoch (a whole number from 1), `{BY_CRITERION}`, a list of these or a range "
                f"{{low, high}}, but got {found(option)}."
            )
    return tuple(raw) if isinstance(raw, list) else raw


def stop_dimension(value: Any) -> Choice | Integer | None:
    """The dimension of a searched `stop_at`; `None` if it is fixed."""
    dimension = parse_dimension(KEY, value, number=int)
    assert not isinstance(dimension, Real), "epochs are whole numbers"
    return dimension


def all_values(value: Any) -> Sequence[Scalar]:
    """Every value that a point can have; null alone if it is not given."""
    dimension = stop_dimension(value)
    if isinstance(dimension, Integer):
        return range(dimension.low, dimension.high + 1, dimension.step)
    return values_of(value) or (None,)


def values_of(value: Any) -> Sequence[Scalar]:
    """The fixed value, all options, or both ends of a range; empty for null."""
    if value is None:
        return ()
    dimension = stop_dimension(value)
    if dimension is None:
        return (value,)
    return dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)
