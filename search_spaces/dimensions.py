"""Dimensions of a search: choice, integer and real, with an optional condition on another dimension."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.numbers import MAX_WHOLE, NumericModel

Scalar = bool | int | float | str | None
Point = dict[str, Scalar]
"""One sampled value per active dimension, keyed by the dimension's flat name (`recipe.learning_rate`)."""


class Condition(BaseModel):
    """A dimension is active only if the dimension `name` has the value `equals`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    equals: Scalar

    def holds(self, point: Mapping[str, Scalar]) -> bool:
        """Whether `point` meets the condition."""
        return self.name in point and point[self.name] == self.equals

    def __str__(self) -> str:
        return f"{self.name} is {self.equals!r}"


class AtLeast(BaseModel):
    """A dimension is active only if the integer dimension `name` is at least `least`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    least: int

    def holds(self, point: Mapping[str, Scalar]) -> bool:
        """Whether `point` meets the condition."""
        value = point.get(self.name)
        return isinstance(value, int) and value >= self.least

    def __str__(self) -> str:
        return f"{self.name} is {self.least} or more"


class _Dimension(NumericModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    when: Condition | AtLeast | None = None


class Choice(_Dimension):
    """One of `options`, which have no order."""

    kind: Literal["choice"] = "choice"
    options: tuple[Scalar, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _options_differ(self) -> "Choice":
        # 1 and 1.0 train the same model; true is something else.
        if len({(isinstance(option, bool), option) for option in self.options}) != len(self.options):
            raise ValueError(
                f"the options of a choice must differ, but got {list(self.options)}. Remove the duplicate."
            )
        return self


class Integer(_Dimension):
    """An integer between `low` and `high`, both included, in steps of `step`."""

    kind: Literal["integer"] = "integer"
    low: int = Field(ge=-MAX_WHOLE, le=MAX_WHOLE)
    high: int = Field(ge=-MAX_WHOLE, le=MAX_WHOLE)
    step: int = Field(default=1, ge=1)
    log: bool = False

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> "Integer":
        _check_bounds(self.low, self.high, log=self.log)
        if self.log and self.step != 1:
            raise ValueError(
                f"`step` must be 1 on a logarithmic scale, but got step={self.step}. Remove `step` or `log`."
            )
        return self


class Real(_Dimension):
    """A number between `low` and `high`, both included."""

    kind: Literal["real"] = "real"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> "Real":
        _check_bounds(self.low, self.high, log=self.log)
        return self


Dimension = Annotated[Choice | Integer | Real, Field(discriminator="kind")]


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if not low < high:
        raise ValueError(f"`low` must lie below `high`, but got low={low}, high={high}. Use a single value to fix it.")
    if log and low <= 0:
        raise ValueError(f"`low` must be above 0 on a logarithmic scale, but got low={low}. Raise it or remove `log`.")


def is_active(dimension: Dimension, point: Mapping[str, Scalar]) -> bool:
    """Whether `dimension` has a value in `point`; the dimensions it depends on must already be sampled."""
    return dimension.when is None or dimension.when.holds(point)


def parse_dimension(
    name: str, raw: Any, *, number: type[int] | type[float] | None = None
) -> Choice | Integer | Real | None:
    """Parse one dimension of a study file; returns `None` for a fixed value.

    A list is a choice, a mapping with `low` and `high` is a range, and any other value is fixed.

    Args:
        name: The dimension's flat name.
        raw: The value as parsed from YAML.
        number: Type of the samples of a range; by default integers if both bounds are integers, else reals.

    Raises:
        ValueError: A range has unknown keys or invalid bounds.
    """
    if isinstance(raw, Mapping) and {"low", "high"} & set(raw):
        unknown = sorted(set(raw) - {"low", "high", "log", "step"})
        if unknown:
            raise ValueError(
                f"a range may only have the keys low, high, log and step, but got {unknown[0]!r}. Remove it."
            )
        whole = number is int or (number is None and all(type(raw.get(key)) is int for key in ("low", "high")))
        kind: type[Integer | Real] = Integer if whole else Real
        return kind(name=name, **raw)
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        return Choice(name=name, options=tuple(raw))
    return None


def count_points(dimensions: Sequence[Dimension]) -> int | None:
    """Number of distinct points; `None` if a dimension is real or conditional."""
    total = 1
    for dimension in dimensions:
        if dimension.when is not None or isinstance(dimension, Real):
            return None
        total *= num_values(dimension)
    return total


def num_values(dimension: Choice | Integer) -> int:
    """Number of values of a dimension."""
    if isinstance(dimension, Choice):
        return len(dimension.options)
    return (dimension.high - dimension.low) // dimension.step + 1
