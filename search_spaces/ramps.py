"""Numbers that change during training, such as `{from: 0.4, to: 0.0, until: 0.5, shape: linear}`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema, core_schema

from search_spaces.numbers import NumericModel, truth_value_problem

RAMP_KEYS = ("from", "to", "until", "shape", "step")
NUMBER_TAG, RAMP_TAG = "<number>", "<ramp>"
"""Tags in the location of pydantic errors, for fields that accept a number or a ramp."""
Shape = Literal["linear", "cosine", "step"]


class Ramp(NumericModel):
    """A number as a function of training progress: `from` at the start, `to` after `until`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    start: float = Field(alias="from", allow_inf_nan=False, description="value at the start of training")
    end: float = Field(alias="to", allow_inf_nan=False, description="value from `until` to the end of training")
    until: float = Field(default=1.0, gt=0, le=1, description="progress in (0, 1] at which the value reaches `to`")
    shape: Shape = Field(
        default="linear",
        description="`linear`, `cosine` (half a period), or `step` (`from` before `until`, `to` after)",
    )
    step: float | None = Field(
        default=None, gt=0, description="round to multiples of this distance from `from`; null disables rounding"
    )

    @model_validator(mode="after")
    def _ends_differ(self) -> "Ramp":
        if self.start == self.end:
            raise ValueError(f"`from` and `to` must differ, but both are {self.start:g}. Use a plain number instead.")
        return self

    @model_serializer
    def _to_short_form(self) -> dict[str, Any]:
        given: dict[str, Any] = {"from": self.start, "to": self.end, "until": self.until, "shape": self.shape}
        return given if self.step is None else {**given, "step": self.step}

    def at(self, progress: float) -> float:
        """Value at a progress in [0, 1]."""
        if progress >= self.until:
            return self.end
        done = progress / self.until
        if self.shape == "step":
            return self.start
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        value = self.start + (self.end - self.start) * done
        if self.step is None:
            return value
        rounded = self.start + round((value - self.start) / self.step) * self.step
        low, high = sorted((self.start, self.end))
        return min(max(rounded, low), high)

    def values(self, num_steps: int = 1000) -> tuple[float, ...]:
        """Distinct values during training, in order of appearance; a sample of them without rounding."""
        return tuple(dict.fromkeys(self.at(index / num_steps) for index in range(num_steps + 1)))

    def __str__(self) -> str:
        rounding = "" if self.step is None else f", step {self.step:g}"
        return f"{self.start:g} to {self.end:g} until {self.until:g} ({self.shape}{rounding})"


def value_at(number: float | Ramp, progress: float) -> float:
    """A plain number as it is, or the value of a ramp at a progress in [0, 1]."""
    return number.at(progress) if isinstance(number, Ramp) else number


def whole_at(number: int | Ramp, progress: float) -> int:
    """A plain integer as it is, or the rounded value of a ramp at a progress in [0, 1]."""
    return round(number.at(progress)) if isinstance(number, Ramp) else number


def largest(number: float | Ramp) -> float:
    """Largest value during training."""
    return max(number.start, number.end) if isinstance(number, Ramp) else number


def is_ramp(raw: Any) -> bool:
    """Whether a value of a study file has the form of a ramp."""
    return isinstance(raw, Ramp) or (isinstance(raw, Mapping) and bool({"from", "to", "until", "shape"} & set(raw)))


def _no_truth_value(raw: Any) -> Any:
    problem = truth_value_problem(raw, float)
    if problem is not None:
        raise ValueError(problem)
    return raw


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a field that takes a number or a ramp: `Annotated[float | Ramp, Bounds(ge=0)]`.

    Both ends of a ramp must lie within the bounds.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    whole: bool = False
    """Whether the number, or both ends of a ramp, must be integers."""

    def problem(self, value: float) -> str | None:
        """The requirement that `value` violates, such as `above 0`; `None` if it meets all."""
        tests: tuple[tuple[float | None, str, Callable[[float, float], bool]], ...] = (
            (self.gt, "above", lambda value, bound: value > bound),
            (self.ge, "at least", lambda value, bound: value >= bound),
            (self.lt, "below", lambda value, bound: value < bound),
            (self.le, "at most", lambda value, bound: value <= bound),
        )
        for bound, words, holds in tests:
            if bound is not None and not holds(value, bound):
                return f"{words} {bound:g}"
        return "a whole number" if self.whole and value != int(value) else None

    def as_metadata(self) -> list[Ge | Gt | Le | Lt]:
        """The bounds of the number as `annotated_types` metadata, as in pydantic's fields."""
        kinds = ((self.gt, Gt), (self.ge, Ge), (self.lt, Lt), (self.le, Le))
        return [kind(bound) for bound, kind in kinds if bound is not None]

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        bounds = {name: getattr(self, name) for name in ("gt", "ge", "lt", "le") if getattr(self, name) is not None}
        kind = core_schema.int_schema(**bounds) if self.whole else core_schema.float_schema(**bounds)
        number = core_schema.no_info_before_validator_function(_no_truth_value, kind)
        ramp = core_schema.no_info_after_validator_function(self._check, handler.generate_schema(Ramp))
        return core_schema.tagged_union_schema(
            {NUMBER_TAG: number, RAMP_TAG: ramp}, discriminator=lambda raw: RAMP_TAG if is_ramp(raw) else NUMBER_TAG
        )

    def _check(self, ramp: Ramp) -> Ramp:
        for name, value in (("from", ramp.start), ("to", ramp.end)):
            problem = self.problem(value)
            if problem is not None:
                raise ValueError(f"`{name}` must be {problem}, but got {value:g}. Change `{name}`.")
        return ramp
