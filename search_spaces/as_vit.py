"""As-ViT's search space: four stages of windowed attention, each with its kernel, split and expansion.

The first stage has one token per 4 x 4 pixels; each later stage halves the grid and doubles the width. The text form is
`kernel,split,expansion,depth|...|heads,width`, such as `8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180`; the depth may be
omitted if it is 1, the width if it is 32. Options of the blocks are a further part (`search_spaces.options`).

Source: Chen et al. 2022, As-ViT, arXiv:2202.11921.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, cast

from pydantic import ConfigDict, Field, model_validator

from search_spaces import costs as layer_costs
from search_spaces.base import Costs, ImageTask, Topology
from search_spaces.dimensions import Choice, Dimension, Integer, Point, Scalar
from search_spaces.moves import crossed, mutated, single_changes
from search_spaces.numbers import NumericModel
from search_spaces.options import (
    NO_OPTIONS,
    BlockOptions,
    OptionSearch,
    head_norm_problem,
    split_options,
    with_options,
)
from search_spaces.text_form import MAX_BLOCKS, read_part, shown

PATCH_STRIDE = 4
"""Pixels per token of the first stage along each side."""
IMAGE_MULTIPLE = 32
"""The image size must be a multiple of this number, so that the grid can be halved three times."""
MAX_WIDTH = 1024
"""Largest width of a stage."""
DEFAULT_WIDTH = 32

KERNELS = ((4, 5, 6, 7, 8), (2, 3, 4), (2, 3, 4), (2, 3, 4))
SPLITS = ((2, 4, 8), (1, 2, 4), (1, 2), (1,))
EXPANSIONS = ((2, 3, 4, 5, 6),) * 4
HEADS = (16, 32, 64)
_STAGE_VALUES = {"kernel": KERNELS, "split": SPLITS, "expansion": EXPANSIONS}

_EXAMPLE = "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"


class Stage(NumericModel):
    """One stage: the layer that produces its tokens, and its blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kernel: int
    """Kernel of the convolution (first stage, stride 4) or patch merging (later stages, stride 2)."""
    split: int
    """Windows along each side of the token grid; 1 is global attention."""
    expansion: int
    """Hidden width of the MLP as a multiple of the stage's width."""
    depth: int = 1
    """Number of blocks."""


class AsViTTopology(Topology):
    """One As-ViT: four stages, the heads of the last stage and the width of the first."""

    stages: tuple[Stage, Stage, Stage, Stage]
    heads: int
    """Attention heads of the last stage; each earlier stage has half as many as the next."""
    width: int = DEFAULT_WIDTH
    """Channels of the first stage; each later stage has twice as many, up to `MAX_WIDTH`."""
    options: BlockOptions = NO_OPTIONS
    """Optional parts of the blocks."""

    @model_validator(mode="after")
    def _values_are_of_the_space(self) -> "AsViTTopology":
        for index, stage in enumerate(self.stages):
            for name, value in stage:
                problem = _stage_value_problem(index, name, value)
                if problem:
                    raise ValueError(f"{name} of stage {index + 1} {problem}")
        for name, value in (("heads", self.heads), ("width", self.width)):
            problem = _last_value_problem(name, value)
            if problem:
                raise ValueError(f"{name} {problem}")
        return self

    @property
    def text(self) -> str:
        stages = (f"{stage.kernel},{stage.split},{stage.expansion},{stage.depth}" for stage in self.stages)
        return with_options([*stages, f"{self.heads},{self.width}"], self.options)

    @property
    def id(self) -> str:
        return f"as-vit:{self.text}"

    @property
    def depths(self) -> tuple[int, int, int, int]:
        """Number of blocks of each stage."""
        first, second, third, fourth = self.stages
        return first.depth, second.depth, third.depth, fourth.depth

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of each stage."""
        first, second, third, fourth = (min(MAX_WIDTH, self.width * 2**index) for index in range(4))
        return first, second, third, fourth

    @property
    def auxiliary_widths(self) -> tuple[int, ...]:
        """Widths of the features that auxiliary heads classify."""
        return self.widths[:-1] if self.options.deep_supervision else ()

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of each stage, and the hidden channels of its MLPs."""
        hidden = (stage.expansion * width for stage, width in zip(self.stages, self.widths, strict=True))
        return *self.widths, *hidden

    @property
    def width_unit(self) -> int:
        """1: any width is possible."""
        return 1

    @property
    def stage_heads(self) -> tuple[int, int, int, int]:
        """Attention heads of each stage."""
        return self.heads // 8, self.heads // 4, self.heads // 2, self.heads

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Channels per head of each stage."""
        return tuple(width // heads for width, heads in zip(self.widths, self.stage_heads, strict=True))

    def with_size(self, *, depths: Sequence[int] | None = None, width: int | None = None) -> "AsViTTopology":
        """The same seed topology with other depths, another width, or both; `None` leaves a value unchanged.

        Raises:
            ValueError: A depth is outside 1 to `MAX_BLOCKS`, there are not four depths, or the width is outside 1 to
                `MAX_WIDTH`.
        """
        new_depths = self.depths if depths is None else tuple(depths)
        if len(new_depths) != 4:
            raise ValueError(
                f"`depths` must have one number of blocks for each of the four stages, but got {list(new_depths)}. "
                "Use depths such as [1, 1, 2, 1]."
            )
        stages = tuple(
            stage.model_copy(update={"depth": depth}) for stage, depth in zip(self.stages, new_depths, strict=True)
        )
        return AsViTTopology.model_validate(
            {
                "stages": stages,
                "heads": self.heads,
                "width": self.width if width is None else width,
                "options": self.options,
            }
        )


class AsViTSpace(NumericModel):
    """The 4,556,250 seed topologies of As-ViT, at one width and depth."""

    topology_type: ClassVar[type[Topology]] = AsViTTopology
    model_config = ConfigDict(frozen=True, extra="forbid")
    width: int = Field(default=DEFAULT_WIDTH, ge=1, le=MAX_WIDTH, description="channels of the first stage")
    depths: tuple[int, int, int, int] = Field(default=(1, 1, 1, 1), description="blocks of each stage")
    options: OptionSearch = Field(default=OptionSearch(), description="optional parts of the blocks")

    @model_validator(mode="after")
    def _each_stage_has_a_block(self) -> "AsViTSpace":
        for index, depth in enumerate(self.depths):
            problem = _stage_value_problem(index, "depth", depth)
            if problem:
                raise ValueError(f"the depth of stage {index + 1} {problem}")
        return self

    def dimensions(self) -> tuple[Dimension, ...]:
        """Kernel, split and expansion of each stage, the heads, and searched options.

        The last stage's split is always 1.
        """
        return (*_stage_dimensions(), *self.options.dimensions())

    def decode(self, point: Point) -> AsViTTopology:
        """The topology at a point; keys that are not dimensions of this space are ignored.

        Raises:
            ValueError: A dimension is missing or has a value outside its range.
        """
        values: dict[str, Any] = {}
        for name, options in _OPTIONS.items():
            if len(options) > 1 and name not in point:
                raise ValueError(f"a point must have a value for {name}, but got only {', '.join(point) or 'nothing'}.")
            values[name] = point[name] if len(options) > 1 else options[0]
        return _from_values(values, depths=self.depths, width=self.width, options=self.options.at(point))

    def encode(self, topology: Topology) -> Point:
        """The point of a topology that has this space's width, depths and options.

        Raises:
            ValueError: The topology has another width, other depths or other options.
        """
        own = _as_vit(topology)
        if (own.width, own.depths) != (self.width, self.depths):
            raise ValueError(
                f"topologies of this space must have width {self.width} and depths {self.depths}, but got {own.text} "
                f"with width {own.width} and depths {own.depths}. Use `with_size`, or a space with these settings."
            )
        if not self.options.contains(own.options):
            raise ValueError(
                f"topologies of this space must have the options {self.options.text}, but got {own.text}. "
                "Use a space with its options."
            )
        point: Point = {name: value for name, value in _values(own).items() if len(_OPTIONS[name]) > 1}
        return point | self.options.values(own.options)

    @classmethod
    def parse(cls, text: str) -> AsViTTopology:
        """Read `kernel,split,expansion[,depth]|` four times, `heads[,width]`, and options if there are any.

        Raises:
            ValueError: The text is malformed or a value is not in the space; the message names the character.
        """
        parts, options = split_options(text, num_parts=5)
        if len(parts) != 5:
            raise ValueError(
                "an As-ViT topology must have five parts separated by '|', four stages and the heads "
                f"(such as {_EXAMPLE}), but got {len(parts)} in {shown(text)}."
            )
        start, stages = 0, []
        for index, part in enumerate(parts[:4]):
            names = ("kernel", "split", "expansion", "depth")

            def check(name: str, value: int, index: int = index) -> str | None:
                return _stage_value_problem(index, name, value)

            stages.append(read_part(text, part, start, f"stage {index + 1}", names, 3, check))
            start += len(part) + 1
        last = read_part(text, parts[4], start, "the last part", ("heads", "width"), 1, _last_value_problem)
        return AsViTTopology.model_validate({"stages": stages, **last, "options": options})

    def describe(self, topology: Topology) -> dict[str, Scalar]:
        """All fields by flat name, from `topology.stage1.kernel` to `topology.width`, and its options."""
        own = _as_vit(topology)
        flat: dict[str, Scalar] = {}
        for index, stage in enumerate(own.stages, start=1):
            flat |= {f"topology.stage{index}.{name}": value for name, value in stage}
        sizes: dict[str, Scalar] = {"topology.heads": own.heads, "topology.width": own.width}
        return flat | sizes | self.options.describe(own.options)

    def sample(self, rng: random.Random) -> AsViTTopology:
        """A topology with each dimension drawn uniformly and independently."""
        return self.decode({name: rng.choice(options) for name, options in self._choices().items()})

    def mutate(self, topology: Topology, rng: random.Random) -> AsViTTopology:
        """A topology that differs in one dimension, drawn uniformly; width and depths are unchanged."""
        own = _as_vit(topology)
        return self._changed(own, mutated(self._values(own), self._choices(), rng))

    def crossover(self, first: Topology, second: Topology, rng: random.Random) -> AsViTTopology:
        """Each dimension from either parent; width and depths are those of `first`."""
        own = _as_vit(first)
        return self._changed(own, crossed(self._values(own), self._values(_as_vit(second)), rng))

    def neighbours(self, topology: Topology) -> tuple[AsViTTopology, ...]:
        """All topologies that differ in exactly one dimension; width and depths are unchanged."""
        own = _as_vit(topology)
        return tuple(self._changed(own, values) for values in single_changes(self._values(own), self._choices()))

    @classmethod
    def problem(cls, topology: Topology, task: ImageTask) -> str | None:
        """Why the topology cannot be built for the task, or `None` if it can.

        Image sizes that are multiples of 32 give grids with sides of 8n, 4n, 2n and n tokens. Every split divides them.
        """
        own = _as_vit(topology)
        size = task.image_size
        if size % IMAGE_MULTIPLE:
            below = size // IMAGE_MULTIPLE * IMAGE_MULTIPLE
            nearest = f"{below} or {below + IMAGE_MULTIPLE}" if below else str(IMAGE_MULTIPLE)
            return f"the image size must be a multiple of {IMAGE_MULTIPLE} pixels, but got {size}. Use {nearest}."
        for index, (width, heads) in enumerate(zip(own.widths, own.stage_heads, strict=True), start=1):
            if width < heads:
                return (
                    f"each head needs a channel, but stage {index} has {heads} heads and {width} channels. "
                    f"Use a width of {own.heads // 8} or more, or fewer heads."
                )
        return head_norm_problem(own.options, own.head_widths)

    @classmethod
    def costs(cls, topology: Topology, task: ImageTask, *, stride_factor: int = 1, auxiliary: bool = False) -> Costs:
        """Parameters and MACs of the model that `trainers.models.as_vit` builds.

        Args:
            topology: The topology of the model.
            task: Image size, channels and classes.
            stride_factor: Factor by which the token grid is coarser, as in the model's `forward`.
            auxiliary: Whether auxiliary heads are computed, as in the model's `forward`.
        """
        own = _as_vit(topology)
        side = task.image_size // (PATCH_STRIDE * stride_factor)
        widths = own.widths
        first = layer_costs.convolution(task.in_channels, widths[0], kernel=own.stages[0].kernel, positions=side**2)
        parts = [first, layer_costs.layer_norm(widths[0])]
        for index, (stage, width, heads) in enumerate(zip(own.stages, widths, own.stage_heads, strict=True)):
            if index:
                side = -(-side // 2)
                patch = stage.kernel**2 * widths[index - 1]
                parts += [
                    layer_costs.layer_norm(patch),
                    layer_costs.linear(patch, width, tokens=side**2, bias=False),
                ]
            if index == len(widths) - 1 and own.options.merged_tokens:
                parts += _merging_block_costs(stage, width, heads, side**2, own.options)
            else:
                parts.append(layer_costs.times(stage.depth, _block_costs(stage, width, heads, side, own.options)))
        last = widths[-1]
        parts += [
            layer_costs.layer_norm(last),
            layer_costs.linear(last, last, tokens=1),
            layer_costs.linear(last, task.num_classes, tokens=1),
            layer_costs.auxiliary_classifiers(own.auxiliary_widths, task.num_classes, computed=auxiliary),
        ]
        return layer_costs.total(parts)

    def _choices(self) -> dict[str, tuple[Scalar, ...]]:
        """Values of each dimension, and the only split of the last stage."""
        return {**_OPTIONS, **self.options.choices}

    def _values(self, topology: AsViTTopology) -> dict[str, Scalar]:
        return {**_values(topology), **self.options.values(topology.options)}

    def _changed(self, topology: AsViTTopology, values: Mapping[str, Scalar]) -> AsViTTopology:
        """The topology with other values of the dimensions."""
        options = self.options.at(values, base=topology.options)
        return _from_values(values, depths=topology.depths, width=topology.width, options=options)


def _block_costs(stage: Stage, width: int, heads: int, side: int, options: BlockOptions) -> Costs:
    """One block on a grid of `side` x `side` tokens."""
    head_width = width // heads
    return layer_costs.transformer_block(
        width,
        heads=heads,
        head_width=head_width,
        hidden=stage.expansion * width,
        tokens=side**2,
        products=layer_costs.windowed_attention_products(
            heads * head_width, side=side, split=stage.split, sigmoid=options.sigmoid_attention
        ),
        options=options,
    )


def _merging_block_costs(stage: Stage, width: int, heads: int, tokens: int, options: BlockOptions) -> Iterator[Costs]:
    """The blocks of the last stage if they merge tokens; attention is computed for a single token, too."""
    head_width = width // heads
    for _ in range(stage.depth):
        merged = layer_costs.num_merged(tokens, options.merged_tokens, num_kept=0)
        yield layer_costs.transformer_block(
            width,
            heads=heads,
            head_width=head_width,
            hidden=stage.expansion * width,
            tokens=tokens,
            products=layer_costs.attention_products(heads * head_width, windows=1, tokens=tokens),
            options=options,
            merged=merged,
        )
        tokens -= merged


def _flat_options() -> dict[str, tuple[int, ...]]:
    flat = {
        f"topology.stage{index + 1}.{name}": options[index]
        for index in range(4)
        for name, options in _STAGE_VALUES.items()
    }
    return flat | {"topology.heads": HEADS}


_OPTIONS = _flat_options()
"""Values of each dimension in the order of `dimensions`, and the only split of the last stage."""


def _values(topology: AsViTTopology) -> dict[str, int]:
    flat = {
        f"topology.stage{index}.{name}": cast("int", getattr(stage, name))
        for index, stage in enumerate(topology.stages, start=1)
        for name in _STAGE_VALUES
    }
    return flat | {"topology.heads": topology.heads}


def _from_values(
    values: Mapping[str, Any], *, depths: Sequence[int], width: int, options: BlockOptions
) -> AsViTTopology:
    stages = [
        {name: values[f"topology.stage{index}.{name}"] for name in _STAGE_VALUES} | {"depth": depth}
        for index, depth in enumerate(depths, start=1)
    ]
    return AsViTTopology.model_validate(
        {"stages": stages, "heads": values["topology.heads"], "width": width, "options": options}
    )


def _as_vit(topology: Topology) -> AsViTTopology:
    if not isinstance(topology, AsViTTopology):
        raise TypeError(f"the space as-vit works on AsViTTopology, but got {type(topology).__name__}.")
    return topology


@cache
def _stage_dimensions() -> tuple[Dimension, ...]:
    """The dimensions that all As-ViT spaces have. To check a study file, they are needed several times."""
    found: list[Dimension] = []
    for name, options in _OPTIONS.items():
        if len(options) == 1:
            continue
        if name.endswith((".kernel", ".expansion")):
            found.append(Integer(name=name, low=options[0], high=options[-1]))
        else:
            found.append(Choice(name=name, options=options))
    return tuple(found)


def _stage_value_problem(index: int, name: str, value: int) -> str | None:
    if name == "depth":
        if value > MAX_BLOCKS:
            return f"must be at most {MAX_BLOCKS:,}, but got {value:,}."
        return None if value >= 1 else f"must be at least 1, but got {value}."
    return _option_problem(_STAGE_VALUES[name][index], value)


def _last_value_problem(name: str, value: int) -> str | None:
    if name == "width":
        return None if 1 <= value <= MAX_WIDTH else f"must lie between 1 and {MAX_WIDTH}, but got {value}."
    return _option_problem(HEADS, value)


def _option_problem(options: tuple[int, ...], value: int) -> str | None:
    if value in options:
        return None
    allowed = f"one of {', '.join(map(str, options))}" if len(options) > 1 else str(options[0])
    return f"must be {allowed}, but got {value}."
