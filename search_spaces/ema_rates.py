"""Decays of the moving averages that training maintains: one number, or `{rates: [0.99, 0.999]}`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Lt
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from search_spaces.numbers import NumericModel
from search_spaces.ramps import NUMBER_TAG, RAMP_TAG


class EmaRates(NumericModel):
    """Several decays. A list without a key would mean, as everywhere in a study file, that one of them is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        min_length=2, description="decays per step, each above 0 and below 1"
    )

    @model_validator(mode="after")
    def _rates_differ(self) -> "EmaRates":
        if len(set(self.rates)) < len(self.rates):
            raise ValueError(f"`rates` must differ, but got {list(self.rates)}. Remove the duplicate.")
        return self

    def __str__(self) -> str:
        return " and ".join(map(str, self.rates))


@dataclass(frozen=True)
class OneOrSeveral:
    """Validates `float | EmaRates` by the form of the value, so that an error concerns the form that was written."""

    gt: float = 0.0
    lt: float = 1.0

    def as_metadata(self) -> list[Gt | Lt]:
        """The bounds of the number as `annotated_types` metadata."""
        return [Gt(self.gt), Lt(self.lt)]

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.tagged_union_schema(
            {NUMBER_TAG: core_schema.float_schema(gt=self.gt, lt=self.lt), RAMP_TAG: handler.generate_schema(EmaRates)},
            discriminator=lambda raw: RAMP_TAG if isinstance(raw, EmaRates | Mapping) else NUMBER_TAG,
        )


def ema_names(ema: float | EmaRates | None) -> dict[str, float]:
    """Names in checkpoints of the moving averages of a recipe, with their decays: `ema`, or `ema-0.99` of several."""
    if ema is None:
        return {}
    return {f"ema-{rate}": rate for rate in ema.rates} if isinstance(ema, EmaRates) else {"ema": ema}


def ema_name(ema: float | EmaRates | None, rate: float | None) -> str:
    """Name in checkpoints of one of a recipe's moving averages.

    Args:
        ema: The field of the recipe.
        rate: Decay of the average; `None` for the only one.

    Raises:
        ValueError: The recipe has no such average, or several.
    """
    names = ema_names(ema)
    if not names:
        raise ValueError("a moving average must be maintained by training, but recipe.ema is null. Set it.")
    found = [name for name, decay in names.items() if rate in (None, decay)]
    if len(found) == 1:
        return found[0]
    decays = ", ".join(map(str, names.values()))
    if found:
        raise ValueError(f"`rate` must be one of the decays in recipe.ema ({decays}), but is not given. Add it.")
    raise ValueError(f"`rate` must be one of the decays in recipe.ema ({decays}), but got {rate}. Change one of them.")
