"""Budgets in a study file: `2h`, or `{time: 2h, macs: 1e15, trials: 20}`."""

import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_serializer, model_validator

from search_spaces.numbers import MAX_COUNT, NumericModel

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


class Budget(NumericModel):
    """What a study or a stage may spend, in all its executions together. A time alone needs no block: `2h`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    time: str | None = Field(
        default=None,
        description="time of execution with its unit: `90s`, `10m`, `2h`, `1d`, or several such as `1h30m`",
    )
    macs: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="multiply-accumulates of the trainings, such as `1e15`"
    )
    trials: int | None = Field(
        default=None, ge=1, le=MAX_COUNT, strict=True, description="number of trials of the searches"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, raw: Any) -> Any:
        if isinstance(raw, bool | int | float):
            raise ValueError(f"a time must have a unit (s, m, h or d), such as `{raw}m`, but got {raw}. Add one.")
        return {"time": raw} if isinstance(raw, str) else raw

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None and not seconds_of(value):
            raise ValueError(
                f"must be a time above 0 with its unit (s, m, h or d), such as `90s`, `10m` or `2h`, but got {value!r}."
            )
        return value

    @model_validator(mode="after")
    def _limits_something(self) -> "Budget":
        if self.time is None and self.macs is None and self.trials is None:
            raise ValueError("a budget must name a time, `macs` or `trials`, but is empty. Name one, or remove it.")
        return self

    @model_serializer
    def _to_short_form(self) -> Any:
        given = {name: value for name, value in self if value is not None}
        return given["time"] if list(given) == ["time"] else given

    @property
    def time_s(self) -> float | None:
        """The time in seconds."""
        return None if self.time is None else seconds_of(self.time)


def seconds_of(text: str) -> float | None:
    """Seconds of a time such as `1h30m`; `None` if it is not one."""
    parts = _PART.findall(text)
    if "".join(f"{number}{unit}" for number, unit in parts) != re.sub(r"\s+", "", text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)
