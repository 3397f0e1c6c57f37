"""Recipes: how a topology is trained, and which recipe fields a study searches."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_serializer,
    model_validator,
)

from search_spaces.dimensions import Choice, Condition, Dimension, Point, Scalar, is_active, parse_dimension
from search_spaces.ema_rates import EmaRates, OneOrSeveral
from search_spaces.numbers import MAX_BATCH_SIZE, NumericModel
from search_spaces.ramps import RAMP_KEYS, Bounds, Ramp, is_ramp, largest


class PluginChoice(BaseModel):
    """The name and settings of a plug-in, written as `cosine` or `{name: cosine, floor: 0.01}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            return {"name": raw}
        if isinstance(raw, PluginChoice):
            return raw
        if not isinstance(raw, Mapping):
            found = f"a list of {len(raw)}" if isinstance(raw, list | tuple) else repr(raw)
            found = "nothing (null)" if raw is None else str(raw).lower() if isinstance(raw, bool) else found
            raise ValueError(f"must be the name of a plug-in, or {{name: ..., SETTING: ...}}, but got {found}.")
        if "name" not in raw:
            keys = ", ".join(map(str, raw)) or "no keys"
            raise ValueError(f"a plug-in with settings is written as {{name: ..., SETTING: ...}}, but got {keys}.")
        if "settings" not in raw:
            return {"name": raw["name"], "settings": {key: value for key, value in raw.items() if key != "name"}}
        return raw

    @model_serializer
    def _to_short_form(self) -> Any:
        return {"name": self.name, **self.settings} if self.settings else self.name


def _as_list(raw: Any) -> Any:
    return raw if isinstance(raw, list | tuple) else [raw]


def _single_alone(methods: tuple[PluginChoice, ...]) -> Any:
    dumped = [method.model_dump() for method in methods]
    return dumped[0] if len(dumped) == 1 else dumped


MethodList = Annotated[
    tuple[PluginChoice, ...],
    Field(min_length=1),
    BeforeValidator(_as_list),
    PlainSerializer(_single_alone),
]
"""Plug-ins, applied in order. A single plug-in needs no list."""


def _none_as_null(raw: Any) -> Any:
    return None if raw == "none" else raw


class Recipe(NumericModel):
    """How one model is trained. Numeric fields of a step also accept functions of progress (`search_spaces.ramps`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: Annotated[float | Ramp, Bounds(gt=0)] = Field(
        default=2e-3, description="learning rate after warm-up"
    )
    weight_decay: Annotated[float | Ramp, Bounds(ge=0)] = Field(
        default=0.05, description="decay of weight matrices; biases and norms are not decayed"
    )
    batch_size: Annotated[int | Ramp, Bounds(ge=1, le=MAX_BATCH_SIZE, whole=True)] = Field(
        default=64, description="images per optimizer step"
    )
    schedule: PluginChoice = Field(
        default=PluginChoice(name="cosine"), description="decay of the learning rate after warm-up"
    )
    warmup: float = Field(
        default=0.1, ge=0, lt=1, description="fraction of the steps during which the learning rate rises"
    )
    label_smoothing: Annotated[float | Ramp, Bounds(ge=0, lt=1)] = Field(
        default=0.0, description="share of the target that is spread evenly over all classes"
    )
    drop_path: Annotated[float | Ramp, Bounds(ge=0, lt=1)] = Field(
        default=0.0, description="stochastic depth rate of the last block; it rises linearly from 0 in the first block"
    )
    augmentation: PluginChoice = Field(
        default=PluginChoice(name="none"), description="random changes of each training image"
    )
    curriculum: MethodList = Field(
        default=(PluginChoice(name="none"),),
        description="method that orders the training images, and methods that adjust the settings of steps, in order",
    )
    gradient_clip: Annotated[float | Ramp, Bounds(gt=0)] | None = Field(
        default=1.0, description="largest gradient norm; null for no limit"
    )
    optimizer: PluginChoice = Field(
        default=PluginChoice(name="adamw"), description="rule that updates the weights from a gradient"
    )
    rates: MethodList = Field(
        default=(PluginChoice(name="uniform"),),
        description="rules for the learning rates of the parts of the network, such as blockwise, layer-decay or mup; "
        "the factors of several rules are multiplied",
    )
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none",
        description="multiply the learning rate by the ratio of the batch size to `base_batch_size` (`linear`) or by "
        "its square root (`sqrt`), in every step if the batch size changes",
    )
    base_batch_size: int = Field(
        default=64,
        ge=1,
        le=MAX_BATCH_SIZE,
        description="batch size for which `learning_rate` is meant; `none` does not use it",
    )
    loss: PluginChoice = Field(default=PluginChoice(name="cross-entropy"), description="loss to minimise")
    dropout: Annotated[float | Ramp, Bounds(ge=0, lt=1)] = Field(
        default=0.0, description="share of activations set to zero after the embedding, attention and MLP layers"
    )
    augmentation_strength: Annotated[float | Ramp, Bounds(ge=0, le=2)] = Field(
        default=1.0, description="factor for the augmentation's ranges; 0 disables augmentation"
    )
    mixing: PluginChoice = Field(
        default=PluginChoice(name="none"), description="mixes the images and targets of a batch: mixup, cutmix, maskmix"
    )
    mixing_strength: Annotated[float | Ramp, Bounds(ge=0, le=1)] = Field(
        default=1.0, description="share of batches that are mixed"
    )
    image_size: Annotated[int | Ramp, Bounds(ge=8, whole=True)] | None = Field(
        default=None,
        description="height and width of training images, in pixels, at most `data.image_size`, which null selects. "
        "Validation always uses `data.image_size`",
    )
    class_weights: Annotated[Literal["balanced"] | None, BeforeValidator(_none_as_null)] = Field(
        default=None,
        description="`balanced`: weight images in the loss so that all classes have equal total weight; null or `none` "
        "weights all images equally",
    )
    ema: Annotated[float | EmaRates, OneOrSeveral()] | None = Field(
        default=None,
        description="decay per step of an exponential moving average of the weights, saved with each checkpoint; "
        "`{rates: [0.99, 0.999]}` maintains several averages",
    )
    swa: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="progress after which the weights of all epochs are averaged, saved with each checkpoint",
    )
    spike_guard: float | None = Field(
        default=None,
        gt=0,
        description="if the loss of a step is not finite, or exceeds the median of the last 100 by this many robust "
        "standard deviations, go back to the start of the epoch and leave out the steps around it, up to 3 times; null "
        "never goes back",
    )


PLUGIN_FIELDS: dict[str, str] = {
    "schedule": "schedules",
    "curriculum": "curricula",
    "optimizer": "optimizers",
    "rates": "rates",
    "loss": "losses",
    "augmentation": "augmentations",
    "mixing": "augmentations",
}
"""Recipe fields that name plug-ins, and the kind of those plug-ins."""
METHOD_LISTS = frozenset({"curriculum", "rates"})
"""Fields of these that take a list of plug-ins which are applied together."""


class RecipeSpace(BaseModel):
    """The searched recipe fields (`dimensions`) and the fixed values of the others (`base`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: Recipe
    dimensions: tuple[Dimension, ...]

    @property
    def largest_batch_size(self) -> int:
        """Largest batch size of all recipes in the space."""
        sizes = [largest(self.base.batch_size)]
        for dimension in self.dimensions:
            if dimension.name in ("recipe.batch_size", "recipe.batch_size.from", "recipe.batch_size.to"):
                sizes += [value for value in _extremes(dimension) if isinstance(value, int | float)]
        return round(max(sizes))

    def decode(self, point: Mapping[str, Scalar]) -> Recipe:
        """The recipe at a point; other keys of the point are ignored."""
        fields: dict[str, Any] = {name: getattr(self.base, name) for name in Recipe.model_fields}
        for name in Recipe.model_fields:
            key = f"recipe.{name}"
            if name in METHOD_LISTS:
                fields[name] = decode_methods(key, point) or fields[name]
            elif name in PLUGIN_FIELDS:
                fields[name] = decode_plugin(key, point) or fields[name]
            elif key in point:
                fields[name] = point[key]
            elif isinstance(fields[name], Ramp):
                parts = {part: point[f"{key}.{part}"] for part in RAMP_KEYS if f"{key}.{part}" in point}
                fields[name] = {**fields[name].model_dump(), **parts}
        return Recipe.model_validate(fields)


def parse_recipe_space(raw: Mapping[str, Any]) -> RecipeSpace:
    """Parse the `recipe` block of a study file: a value fixes a field, a list or a range searches it.

    The base value of a searched field is the first option of a list, or the geometric (`log`) or arithmetic mean of
    the bounds of a range. Each part of a function of progress may be searched:
    `{from: 0.1, to: 0.0, until: {low: 0.3, high: 0.8}}`.

    Raises:
        ValueError: A field is unknown or has an invalid value.
    """
    fixed: dict[str, Any] = {}
    dimensions: list[Dimension] = []
    for name, value in raw.items():
        if name not in Recipe.model_fields:
            fixed[name] = value  # `Recipe` rejects it and suggests the nearest name
            continue
        key = f"recipe.{name}"
        if name in METHOD_LISTS:
            fixed[name], found = parse_method_dimensions(key, value)
            dimensions.extend(found)
            continue
        if name in PLUGIN_FIELDS:
            fixed[name], found = parse_plugin_dimensions(key, value)
            dimensions.extend(found)
            continue
        if is_ramp(value):
            fixed[name], found = _parse_ramp(name, value)
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
    """Parse a plug-in choice whose name and settings may be searched.

    `[none, {name: paced, start: {low: 0.1, high: 0.5}}]` gives a choice `key` and, for `paced` only, a
    real `key.paced.start`. Fixed settings become choices with one option, so that a point describes the plug-in
    completely.

    Returns:
        The base choice (the first option with its fixed settings) and the dimensions, parents before children.
    """
    options = list(raw) if isinstance(raw, list | tuple) else [raw]
    if not options:
        raise ValueError("a list of plug-ins must not be empty, but got []. Name at least one plug-in.")
    choices = [PluginChoice.model_validate(option) for option in options]
    names = [choice.name for choice in choices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"each plug-in may be listed once, but {twice!r} is listed {names.count(twice)} times. Remove the others, "
            f"or search its settings: {{name: {twice}, SETTING: [VALUE, VALUE]}}."
        )
    searched = len(choices) > 1 or any(
        parse_dimension("", value) is not None for choice in choices for value in choice.settings.values()
    )
    if not searched:
        return choices[0], ()
    dimensions: list[Dimension] = [Choice(name=key, options=tuple(choice.name for choice in choices))]
    for choice in choices:
        dimensions += _setting_dimensions(f"{key}.{choice.name}", choice, Condition(name=key, equals=choice.name))
    settings = {
        setting: value if (found := parse_dimension("x", value)) is None else middle(found)
        for setting, value in choices[0].settings.items()
    }
    return PluginChoice(name=choices[0].name, settings=settings), tuple(dimensions)


def parse_method_dimensions(key: str, raw: Any) -> tuple[tuple[PluginChoice, ...], tuple[Dimension, ...]]:
    """Parse alternatives; each is a plug-in or a list of plug-ins to apply in order.

    `[none, paced, [paced, early-dropout]]` gives a choice `key` between `none`, `paced` and `paced+early-dropout`.
    The settings of a method in a list have names such as `key.paced+early-dropout.paced.start`.

    Returns:
        The base methods (the first alternative with its fixed settings) and the dimensions, parents before children.
    """
    alternatives = list(raw) if isinstance(raw, list | tuple) else [raw]
    if not any(isinstance(alternative, list | tuple) for alternative in alternatives):
        base, found = parse_plugin_dimensions(key, raw)
        return (base,), found
    lists = [_method_list(alternative) for alternative in alternatives]
    labels = [_label(methods) for methods in lists]
    parsed = [
        [(method, parse_plugin_dimensions(_method_key(key, methods, method), _as_raw(method))) for method in methods]
        for methods in lists
    ]
    searched = len(lists) > 1 or any(dimensions for methods in parsed for _, (_, dimensions) in methods)
    base_methods = tuple(base for _, (base, _) in parsed[0])
    if not searched:
        return base_methods, ()
    found_dimensions: list[Dimension] = [Choice(name=key, options=tuple(labels))]
    for label, methods in zip(labels, lists, strict=True):
        condition = Condition(name=key, equals=label)
        for method in methods:
            found_dimensions += _setting_dimensions(_method_key(key, methods, method), method, condition)
    return base_methods, tuple(found_dimensions)


def decode_methods(key: str, point: Mapping[str, Scalar]) -> tuple[PluginChoice, ...] | None:
    """The methods that a point selects under `key`, in order; `None` if it selects none."""
    if key not in point:
        return None
    label = str(point[key])
    names = label.split("+")
    if len(names) == 1:
        chosen = decode_plugin(key, point)
        return None if chosen is None else (chosen,)
    return tuple(_with_settings(name, f"{key}.{label}.{name}.", point) for name in names)


def decode_plugin(key: str, point: Mapping[str, Scalar]) -> PluginChoice | None:
    """The plug-in that a point selects under `key`; `None` if it selects none."""
    if key not in point:
        return None
    return _with_settings(str(point[key]), f"{key}.{point[key]}.", point)


def _with_settings(name: str, prefix: str, point: Mapping[str, Scalar]) -> PluginChoice:
    settings = {key.removeprefix(prefix): value for key, value in point.items() if key.startswith(prefix)}
    return PluginChoice(name=name, settings=settings)


def _setting_dimensions(key: str, choice: PluginChoice, condition: Condition) -> list[Dimension]:
    """Dimensions `key.SETTING` of a plug-in's settings; a fixed setting is a choice with one option."""
    dimensions: list[Dimension] = []
    for setting, value in choice.settings.items():
        name = f"{key}.{setting}"
        dimension = parse_dimension(name, value) or Choice(name=name, options=(value,))
        dimensions.append(dimension.model_copy(update={"when": condition}))
    return dimensions


def _method_list(raw: Any) -> tuple[PluginChoice, ...]:
    methods = tuple(PluginChoice.model_validate(method) for method in _as_list(raw))
    names = [method.name for method in methods]
    if not names:
        raise ValueError("a list of methods must not be empty, but got []. Name at least one method.")
    if len(set(names)) < len(names):
        raise ValueError(f"the methods of a list must differ, but got {', '.join(names)}. Remove the duplicate.")
    return methods


def _label(methods: Sequence[PluginChoice]) -> str:
    return "+".join(method.name for method in methods)


def _method_key(key: str, methods: Sequence[PluginChoice], method: PluginChoice) -> str:
    return f"{key}.{method.name}" if len(methods) == 1 else f"{key}.{_label(methods)}.{method.name}"


def _as_raw(method: PluginChoice) -> Mapping[str, Any]:
    return {"name": method.name, **method.settings}


def _parse_ramp(field: str, raw: Mapping[str, Any]) -> tuple[Ramp, tuple[Dimension, ...]]:
    """A function of progress with the base value of each searched part, and the dimensions of those parts."""
    if isinstance(raw, Ramp):
        return raw, ()
    base: dict[str, Any] = dict(raw)
    dimensions: list[Dimension] = []
    for part in RAMP_KEYS:
        number = _number_type(field) if part in ("from", "to") else float
        dimension = parse_dimension(f"recipe.{field}.{part}", raw[part], number=number) if part in raw else None
        if dimension is not None:
            base[part] = middle(dimension)
            dimensions.append(dimension)
    for dimension in dimensions:
        for value in _extremes(dimension):
            Recipe.model_validate({field: {**base, dimension.name.rpartition(".")[2]: value}})
    ramp = getattr(Recipe.model_validate({field: base}), field)
    assert isinstance(ramp, Ramp)
    return ramp, tuple(dimensions)


def middle(dimension: Dimension) -> Scalar:
    """The base value of a searched field."""
    if isinstance(dimension, Choice):
        return dimension.options[0]
    centre = (dimension.low * dimension.high) ** 0.5 if dimension.log else (dimension.low + dimension.high) / 2
    if dimension.kind == "real":
        return float(f"{centre:.6g}")
    return dimension.low + round((centre - dimension.low) / dimension.step) * dimension.step


def base_point(dimensions: Sequence[Dimension], **fixed: Scalar) -> Point:
    """The base value of each active dimension: the first option of a choice, the middle of a range.

    Args:
        dimensions: All dimensions, parents before the dimensions that depend on them.
        fixed: Values that replace base values, by dimension name.
    """
    point: Point = {}
    for dimension in dimensions:
        if is_active(dimension, point):
            point[dimension.name] = fixed.get(dimension.name, middle(dimension))
    return point


def describe_plugin(choice: PluginChoice) -> str:
    """A readable form of a plug-in and its settings: `lawa(window=5, spacing=1)`."""
    settings = ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in choice.settings.items()
    )
    return f"{choice.name}({settings})" if settings else choice.name


def _extremes(dimension: Dimension) -> tuple[Scalar, ...]:
    return dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def _number_type(field: str) -> type[int] | type[float]:
    return int if _mentions_int(Recipe.model_fields[field].annotation) else float


def _mentions_int(annotation: Any) -> bool:
    return annotation is int or any(_mentions_int(part) for part in get_args(annotation))
