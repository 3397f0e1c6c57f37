"""Limits of numbers, and models in which true and false are no numbers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, model_validator
from pydantic_core import PydanticCustomError

MAX_COUNT = 10_000_000
"""Largest number of trials, epochs and the like."""
MAX_BATCH_SIZE = 1_000_000
"""Largest number of images in a batch."""
MAX_WHOLE = 2**53
"""Largest whole number that a setting of a plug-in or a range may have; floating-point numbers represent it exactly."""
MAX_SEED = 2**63 - 1
"""Largest seed, and largest number of parameters or multiply-accumulates."""


TRUTH_VALUE = "truth_value"
"""Type of the error of `NumericModel`; its context has the field's name as `field`."""


class NumericModel(BaseModel):
    """A model whose numeric fields do not take true and false, which pydantic reads as 1 and 0."""

    @model_validator(mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for name, field in cls.model_fields.items():
                for key in {name, field.alias or name} & raw.keys():
                    problem = truth_value_problem(raw[key], field.annotation)
                    if problem is not None:
                        raise PydanticCustomError(
                            TRUTH_VALUE, "`{field}` {problem}", {"field": key, "problem": problem}
                        )
        return raw


def truth_value_problem(raw: Any, hint: Any) -> str | None:
    """Why a value with true or false cannot be used where the type wants numbers; `None` if it can.

    Args:
        raw: The value, or a list of values.
        hint: A type annotation.
    """
    for value in _leaves(raw):
        if isinstance(value, bool) and _wants_numbers(hint):
            return f"must be a number, but got {str(value).lower()}. Write a number."
    return None


def _wants_numbers(hint: Any) -> bool:
    kinds = set(_kinds(hint))
    return bool(kinds & {int, float}) and not kinds & {bool, Any, object}


def _kinds(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from map(type, get_args(hint))
    elif get_origin(hint) is Annotated:
        yield from _kinds(get_args(hint)[0])
    elif get_origin(hint) is None:
        yield hint
    else:
        for inner in get_args(hint):
            yield from _kinds(inner)


def _leaves(raw: Any) -> Iterable[Any]:
    return raw if isinstance(raw, list | tuple) else (raw,)
