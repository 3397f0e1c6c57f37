"""A recipe: how a topology is trained, and which of its fields a study searches."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from search_spaces.dimensions import Choice, Condition, Dimension, Point, Scalar, is_active, parse_dimension

Augmentation = Literal["none", "shift", "affine", "flip-crop", "randaugment"]


class PluginChoice(BaseModel):
    """A plug-in by name, with its settings; written as `cosine` or as `{name: cosine, floor: 0.01}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            return {"name": raw}
        if isinstance(raw, Mapping) and "settings" not in raw and "name" in raw:
            return {"name": raw["name"], "settings": {key: value for key, value in raw.items() if key != "name"}}
        return raw

    @model_serializer
    def _to_short_form(self) -> Any:
        return {"name": self.name, **self.settings} if self.settings else self.name


class Recipe(BaseModel):
    """How one model is trained. AdamW with warm-up; everything else is a field."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: float = Field(default=2e-3, gt=0, description="of AdamW, once warm-up is over")
    weight_decay: float = Field(default=0.05, ge=0, description="of weight matrices; biases and norms have none")
    batch_size: int = Field(default=64, ge=1, description="images of one optimizer step")
    schedule: PluginChoice = Field(
        default=PluginChoice(name="cosine"), description="how the learning rate falls after warm-up"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps with a rising rate")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    drop_path: float = Field(
        default=0.0, ge=0, lt=1, description="rate of stochastic depth in the last block; it rises evenly to it"
    )
    augmentation: Augmentation = Field(default="none", description="random changes of each training image")
    curriculum: PluginChoice = Field(
        default=PluginChoice(name="none"), description="which training images are visited when"
    )
    gradient_clip: float | None = Field(default=1.0, gt=0, description="largest gradient norm; null for no limit")


PLUGIN_FIELDS: dict[str, str] = {"schedule": "schedules", "curriculum": "curricula"}
"""Recipe fields that name a plug-in, with the plug-in's kind."""


class RecipeSpace(BaseModel):
    """Which recipe fields are searched (`dimensions`) and what the others are fixed to (`base`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: Recipe
    dimensions: tuple[Dimension, ...]

    def decode(self, point: Mapping[str, Scalar]) -> Recipe:
        """The recipe at a point; keys that are no recipe dimension are left aside."""
        fields: dict[str, Any] = {name: getattr(self.base, name) for name in Recipe.model_fields}
        for name in Recipe.model_fields:
            key = f"recipe.{name}"
            if name in PLUGIN_FIELDS:
                chosen = decode_plugin(key, point)
                fields[name] = fields[name] if chosen is None else chosen
            elif key in point:
                fields[name] = point[key]
        return Recipe.model_validate(fields)


def parse_recipe_space(raw: Mapping[str, Any]) -> RecipeSpace:
    """Read the `recipe` block of a study file: a value fixes a field, a list or a range searches it.

    A searched field's base value is the first option of a list, and the geometric (`log`) or arithmetic
    middle of a range.

    Raises:
        ValueError: An unknown field or a value that the field does not take.
    """
    fixed: dict[str, Any] = {}
    dimensions: list[Dimension] = []
    for name, value in raw.items():
        if name not in Recipe.model_fields:
            fixed[name] = value  # Recipe's own validation names it and its nearest neighbour
            continue
        key = f"recipe.{name}"
        if name in PLUGIN_FIELDS:
            choice, found = parse_plugin_dimensions(key, value)
            fixed[name] = choice
            dimensions.extend(found)
            continue
        dimension = parse_dimension(key, value, number=_number_type(name))
        if dimension is None:
            fixed[name] = value
            continue
        for option in _extremes(dimension):
            Recipe.model_validate({name: option})
        fixed[name] = middle(dimension)
        dimensions.append(dimension)
    return RecipeSpace(base=Recipe.model_validate(fixed), dimensions=tuple(dimensions))


def parse_plugin_dimensions(key: str, raw: Any) -> tuple[PluginChoice, tuple[Dimension, ...]]:
    """Read a plug-in choice whose name and settings may be searched.

    `[none, {name: paced, start: {low: 0.1, high: 0.5}}]` gives a choice `key` and, for `paced` only, a
    real `key.paced.start`.
    Fixed settings become one-option choices, so that a point alone tells the whole plug-in.

    Returns:
        The base choice (the first option with its fixed settings) and the dimensions, parents before children.
    """
    options = list(raw) if isinstance(raw, list | tuple) else [raw]
    if not options:
        raise ValueError("a list of plug-ins must not be empty. Name at least one.")
    choices = [PluginChoice.model_validate(option) for option in options]
    searched = len(choices) > 1 or any(
        parse_dimension("", value) is not None for choice in choices for value in choice.settings.values()
    )
    if not searched:
        return choices[0], ()
    dimensions: list[Dimension] = [Choice(name=key, options=tuple(choice.name for choice in choices))]
    for choice in choices:
        condition = Condition(name=key, equals=choice.name)
        for setting, value in choice.settings.items():
            name = f"{key}.{choice.name}.{setting}"
            dimension = parse_dimension(name, value) or Choice(name=name, options=(value,))
            dimensions.append(dimension.model_copy(update={"when": condition}))
    settings = {
        setting: value if (found := parse_dimension("x", value)) is None else middle(found)
        for setting, value in choices[0].settings.items()
    }
    return PluginChoice(name=choices[0].name, settings=settings), tuple(dimensions)


def decode_plugin(key: str, point: Mapping[str, Scalar]) -> PluginChoice | None:
    """The plug-in chosen under `key` in a point, or `None` if the point does not choose one."""
    if key not in point:
        return None
    prefix = f"{key}.{point[key]}."
    settings = {name.removeprefix(prefix): value for name, value in point.items() if name.startswith(prefix)}
    return PluginChoice(name=str(point[key]), settings=settings)


def middle(dimension: Dimension) -> Scalar:
    """The value that stands for a searched field in the base recipe."""
    if isinstance(dimension, Choice):
        return dimension.options[0]
    centre = (dimension.low * dimension.high) ** 0.5 if dimension.log else (dimension.low + dimension.high) / 2
    if dimension.kind == "real":
        return float(f"{centre:.6g}")
    return dimension.low + round((centre - dimension.low) / dimension.step) * dimension.step


def base_point(dimensions: Sequence[Dimension], **fixed: Scalar) -> Point:
    """The point of base values: the first option of a choice, the middle of a range, for the active dimensions.

    Args:
        dimensions: Parents before the dimensions that depend on them.
        fixed: Values that replace the base value of the dimension of that name.
    """
    point: Point = {}
    for dimension in dimensions:
        if is_active(dimension, point):
            point[dimension.name] = fixed.get(dimension.name, middle(dimension))
    return point


def describe_plugin(choice: PluginChoice) -> str:
    """A plug-in with its settings as people read it: `lawa(window=5, spacing=1)`."""
    settings = ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in choice.settings.items()
    )
    return f"{choice.name}({settings})" if settings else choice.name


def _extremes(dimension: Dimension) -> tuple[Scalar, ...]:
    return dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def _number_type(field: str) -> type[int] | type[float]:
    annotation = Recipe.model_fields[field].annotation
    return int if annotation is int or int in get_args(annotation) else float
