"""AutoFormer's search space: plain vision transformers whose blocks differ in their heads and MLP ratio.

The text form is `heads,ratio|heads,ratio|...|hidden_dim,patch_size`, with one part for each block and a last one, such
as `3,3.5|4,4|3,4|192,16`; the patch size may be omitted if it is 16. The last part may have a third number, the width
of a head; without it the heads of a block share `hidden_dim` evenly. Options of the blocks are a further part
(`search_spaces.options`).

Source: Chen et al. 2021, AutoFormer, arXiv:2107.00651; networks as in ViT-Bench-101 (Wei et al. 2024, Auto-Prox,
arXiv:2312.09059), without relative position.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from search_spaces import costs as layer_costs
from search_spaces.base import Costs, ImageTask, Topology
from search_spaces.dimensions import AtLeast, Choice, Dimension, Integer, Point, Scalar
from search_spaces.numbers import NumericModel
from search_spaces.options import (
    NO_OPTIONS,
    BlockOptions,
    OptionSearch,
    head_norm_problem,
    split_options,
    with_options,
)
from search_spaces.text_form import MAX_BLOCKS, MAX_NUMBER, NUM_DECIMALS, decimal, fail, read_part, shown

DEFAULT_PATCH_SIZE = 16

_EXAMPLE = "3,3.5|4,4|3,4|192,16"
_Whole = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
_Ratio = Annotated[
    float, Field(ge=10**-NUM_DECIMALS, le=MAX_NUMBER), AfterValidator(lambda value: round(value, NUM_DECIMALS))
]


class AutoFormerTopology(Topology):
    """One AutoFormer; its fields are the keys of `arch` in a table of published accuracies."""

    hidden_dim: _Whole
    """Width of every block."""
    depth: int = Field(ge=1, le=MAX_BLOCKS)
    """Number of blocks."""
    num_heads: tuple[_Whole, ...]
    """Attention heads of each block."""
    mlp_ratio: tuple[_Ratio, ...]
    """Hidden width of each block's MLP as a multiple of `hidden_dim`, to four decimals. Channels are rounded down."""
    patch_size: _Whole = DEFAULT_PATCH_SIZE
    """Side of a patch in pixels; each patch is a token."""
    head_width: _Whole | None = None
    """Channels of a head. With `None`, the heads of a block share `hidden_dim`, as in the networks of the benchmark.
    With a number, queries, keys and values have `heads * head_width` channels, as in the authors' code (where it is
    64)."""
    options: BlockOptions = NO_OPTIONS
    """Optional parts of the blocks."""

    @model_validator(mode="after")
    def _each_block_is_described(self) -> "AutoFormerTopology":
        for name, values in (("num_heads", self.num_heads), ("mlp_ratio", self.mlp_ratio)):
            if len(values) != self.depth:
                raise ValueError(
                    f"{name} must have one value for each of the {self.depth} blocks, but got {len(values)}."
                )
        return self

    @property
    def text(self) -> str:
        blocks = (f"{heads},{decimal(ratio)}" for heads, ratio in zip(self.num_heads, self.mlp_ratio, strict=True))
        last = (self.hidden_dim, self.patch_size, *(() if self.head_width is None else (self.head_width,)))
        return with_options([*blocks, ",".join(map(str, last))], self.options)

    @property
    def id(self) -> str:
        return f"autoformer:{self.text}"

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Hidden channels of each block's MLP."""
        return tuple(int(self.hidden_dim * ratio) for ratio in self.mlp_ratio)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Channels per head of each block."""
        return tuple(self.head_width or self.hidden_dim // heads for heads in self.num_heads)

    @property
    def auxiliary_blocks(self) -> tuple[int, ...]:
        """The blocks, counted from 1, whose tokens auxiliary heads classify: at a third and two thirds of the depth."""
        if not self.options.deep_supervision:
            return ()
        return tuple(sorted({max(1, self.depth // 3), max(1, 2 * self.depth // 3)}))

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """`hidden_dim`, and the hidden channels of each block's MLP."""
        return self.hidden_dim, *self.hidden_widths

    @property
    def depths(self) -> tuple[int]:
        """The number of blocks; AutoFormer has one stage."""
        return (self.depth,)

    @property
    def width(self) -> int:
        """`hidden_dim`."""
        return self.hidden_dim

    @property
    def width_unit(self) -> int:
        """Smallest width that the heads of every block can share; 1 if the width of a head is fixed."""
        return math.lcm(*self.num_heads) if self.head_width is None else 1

    def with_size(self, *, depths: Sequence[int] | None = None, width: int | None = None) -> "AutoFormerTopology":
        """The same topology with another depth, width, or both; `None` leaves a value unchanged.

        New blocks repeat the last one.

        Raises:
            ValueError: The depth is outside 1 to `MAX_BLOCKS`, there is not exactly one, or the heads cannot share the
                width.
        """
        new_depths = self.depths if depths is None else tuple(depths)
        if len(new_depths) != 1 or not 1 <= new_depths[0] <= MAX_BLOCKS:
            raise ValueError(
                f"`depths` must have one number of blocks from 1 to {MAX_BLOCKS:,}, but got {list(new_depths)}. "
                "Use depths such as [12]."
            )
        depth, last = new_depths[0], self.depth - 1
        resized = AutoFormerTopology(
            hidden_dim=self.hidden_dim if width is None else width,
            depth=depth,
            num_heads=tuple(self.num_heads[min(index, last)] for index in range(depth)),
            mlp_ratio=tuple(self.mlp_ratio[min(index, last)] for index in range(depth)),
            patch_size=self.patch_size,
            head_width=self.head_width,
            options=self.options,
        )
        problem = None if width is None else _sharing_problem(resized)
        if problem:
            raise ValueError(f"`width` {problem}")
        return resized


class _Ranges(NamedTuple):
    """Values of one size of the space, and the usual width of its heads."""

    hidden_dim: tuple[int, ...]
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    head_width: int | None


SIZES: dict[str, _Ranges] = {
    "tiny": _Ranges((192, 216, 240), (12, 13, 14), (3, 4), (3.5, 4.0), None),
    "small": _Ranges((320, 384, 448), (12, 13, 14), (5, 6, 7), (3.0, 3.5, 4.0), 64),
    "base": _Ranges((528, 576, 624), (14, 15, 16), (9, 10), (3.0, 3.5, 4.0), 64),
}
"""`tiny` is the space of ViT-Bench-101."""


class AutoFormerSpace(NumericModel):
    """AutoFormer's topologies of one size. A block's heads and MLP ratio are active if the depth includes the block."""

    topology_type: ClassVar[type[Topology]] = AutoFormerTopology
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: Literal["tiny", "small", "base"] = Field(default="tiny", description="which of the authors' three spaces")
    patch_size: _Whole = Field(default=DEFAULT_PATCH_SIZE, description="side of a patch in pixels")
    head_width: _Whole | Literal["usual", "shared"] = Field(
        default="usual",
        description="channels of a head; `shared`: the heads of a block share hidden_dim; "
        "`usual`: shared for tiny, 64 for small and base",
    )
    options: OptionSearch = Field(default=OptionSearch(), description="optional parts of the blocks")

    @model_validator(mode="after")
    def _heads_can_share_the_width(self) -> "AutoFormerSpace":
        if self.head_width == "shared":
            for width in self._ranges.hidden_dim:
                for heads in self._ranges.heads:
                    if width % heads:
                        raise ValueError(
                            f"`head_width` must be a number for the size {self.size}, since a hidden_dim of {width} "
                            f"cannot be shared by {heads} heads, but got 'shared'. Use 64."
                        )
        return self

    @property
    def _ranges(self) -> _Ranges:
        return SIZES[self.size]

    @property
    def _fixed_head_width(self) -> int | None:
        if self.head_width == "usual":
            return self._ranges.head_width
        return None if self.head_width == "shared" else self.head_width

    def dimensions(self) -> tuple[Dimension, ...]:
        """`hidden_dim` and `depth`, heads and MLP ratio of each block, and searched options.

        Blocks that not all topologies have depend on `depth`.
        """
        ranges = self._ranges
        step = ranges.hidden_dim[1] - ranges.hidden_dim[0]
        low, high = ranges.depth[0], ranges.depth[-1]
        found: list[Dimension] = [
            Integer(name="topology.hidden_dim", low=ranges.hidden_dim[0], high=ranges.hidden_dim[-1], step=step),
            Integer(name="topology.depth", low=low, high=high),
        ]
        for block in range(1, high + 1):
            when = AtLeast(name="topology.depth", least=block) if block > low else None
            heads, ratio = _block_names(block)
            found.append(Integer(name=heads, low=ranges.heads[0], high=ranges.heads[-1], when=when))
            found.append(Choice(name=ratio, options=ranges.mlp_ratio, when=when))
        return (*found, *self.options.dimensions())

    def decode(self, point: Point) -> AutoFormerTopology:
        """The topology at a point; blocks beyond its depth and keys of other spaces are ignored.

        Raises:
            ValueError: A dimension is missing or has a value outside its range.
        """
        depths, depth = self._ranges.depth, point.get("topology.depth")
        for name, options in self._sizes(depth if isinstance(depth, int) and depth in depths else 0).items():
            if name not in point:
                raise ValueError(f"a point must have a value for {name}, but got only {', '.join(point) or 'nothing'}.")
            if point[name] not in options:
                raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, but got {point[name]!r}.")
        return _from_values(point, self.patch_size, self._fixed_head_width, self.options.at(point))

    def encode(self, topology: Topology) -> Point:
        """The point of a topology of this space. It has no dimensions for blocks that the topology lacks.

        Raises:
            ValueError: The topology is not in this space.
        """
        own = _autoformer(topology)
        point, options = _values(own), self._sizes(own.depth)
        settings = (self.patch_size, self._fixed_head_width)
        has_settings = (own.patch_size, own.head_width) == settings and self.options.contains(own.options)
        if not has_settings or any(value not in options[name] for name, value in point.items()):
            raise ValueError(
                f"a topology must be in the space (size {self.size}, patch size {self.patch_size}, head width "
                f"{self._fixed_head_width or 'shared'}, options {self.options.text}) to have a point, but got "
                f"{own.text}. Use a space with its settings."
            )
        return point | self.options.values(own.options)

    @classmethod
    def parse(cls, text: str) -> AutoFormerTopology:
        """Read `heads,ratio|` for each block, `hidden_dim[,patch_size[,head_width]]`, and options if there are any.

        Raises:
            ValueError: The text is malformed; the message names the character.
        """
        (*blocks, last), options = split_options(text)
        if not blocks:
            raise ValueError(
                "an AutoFormer topology must have a part heads,ratio for each block and a last part hidden_dim, "
                f"separated by '|' (such as {_EXAMPLE}), but got one part in {shown(text)}."
            )
        if len(blocks) > MAX_BLOCKS:
            raise ValueError(f"an AutoFormer topology may have {MAX_BLOCKS:,} blocks, but got {len(blocks):,}.")
        start, found = 0, []
        for index, part in enumerate(blocks, start=1):
            where = f"block {index}"
            found.append(
                read_part(text, part, start, where, ("heads", "ratio"), 2, _number_problem, decimals=("ratio",))
            )
            start += len(part) + 1
        sizes = read_part(
            text, last, start, "the last part", ("hidden_dim", "patch_size", "head_width"), 1, _number_problem
        )
        topology = AutoFormerTopology(
            depth=len(found),
            num_heads=tuple(block["heads"] for block in found),
            mlp_ratio=tuple(block["ratio"] for block in found),
            **sizes,
            options=options,
        )
        problem = _sharing_problem(topology)
        if problem:
            fail(text, start, "hidden_dim of the last part", problem)
        return topology

    def describe(self, topology: Topology) -> dict[str, Scalar]:
        """All fields by flat name; fields of blocks beyond the depth are `None`."""
        own = _autoformer(topology)
        sizes: dict[str, Scalar] = {
            "topology.hidden_dim": own.hidden_dim,
            "topology.depth": own.depth,
            "topology.patch_size": own.patch_size,
            "topology.head_width": own.head_width,
        }
        deepest = max(own.depth, self._ranges.depth[-1])
        names = [name for block in range(1, deepest + 1) for name in _block_names(block)]
        return sizes | dict.fromkeys(names) | _values(own) | self.options.describe(own.options)

    def sample(self, rng: random.Random) -> AutoFormerTopology:
        """A topology with each dimension drawn uniformly and independently."""
        depth = rng.choice(self._ranges.depth)
        drawn = {name: rng.choice(options) for name, options in self._options(depth).items()}
        return self.decode({**drawn, "topology.depth": depth})

    def mutate(self, topology: Topology, rng: random.Random) -> AutoFormerTopology:
        """A topology that differs in one dimension, drawn uniformly; added blocks repeat the last one."""
        own = _autoformer(topology)
        values = self._values(own)
        name = rng.choice(list(self._options(own.depth)))
        return self._changed(own, name, rng.choice(self._other_options(own.depth, name, values[name])))

    def crossover(self, first: Topology, second: Topology, rng: random.Random) -> AutoFormerTopology:
        """Each dimension from either parent that has it; patch size and head width are those of `first`."""
        own = _autoformer(first)
        one, other = self._values(own), self._values(_autoformer(second))
        values = {name: rng.choice([parent[name] for parent in (one, other) if name in parent]) for name in one | other}
        return _from_values(values, own.patch_size, own.head_width, self.options.at(values, base=own.options))

    def neighbours(self, topology: Topology) -> tuple[AutoFormerTopology, ...]:
        """All topologies that differ in exactly one dimension; added blocks repeat the last one."""
        own = _autoformer(topology)
        values = self._values(own)
        return tuple(
            self._changed(own, name, option)
            for name in self._options(own.depth)
            for option in self._other_options(own.depth, name, values[name])
        )

    @classmethod
    def problem(cls, topology: Topology, task: ImageTask) -> str | None:
        """Why the topology cannot be built for the task, or `None` if it can."""
        own = _autoformer(topology)
        size, patch = task.image_size, own.patch_size
        if size % patch:
            below = size // patch * patch
            nearest = f"{below} or {below + patch}" if below else str(patch)
            return (
                f"the image size must be a multiple of the patch size, {patch} pixels, but got {size}. Use {nearest}."
            )
        for index, hidden in enumerate(own.hidden_widths, start=1):
            if hidden < 1:
                return (
                    f"each MLP needs a hidden channel, but block {index} has a ratio of {own.mlp_ratio[index - 1]} "
                    f"to a hidden_dim of {own.hidden_dim}. Raise one of them."
                )
        if own.options.deep_supervision and own.depth == 1:
            return "deep_supervision needs an inner block, but there is only one block. Use 2 or more."
        problem = _sharing_problem(own)
        return head_norm_problem(own.options, own.head_widths) if problem is None else f"hidden_dim {problem}"

    @classmethod
    def costs(cls, topology: Topology, task: ImageTask, *, auxiliary: bool = False) -> Costs:
        """Parameters and MACs of the model that `trainers.models.autoformer` builds.

        Args:
            topology: The topology of the model.
            task: Image size, channels and classes.
            auxiliary: Whether auxiliary heads are computed, as in the model's `forward`.
        """
        own = _autoformer(topology)
        width, patches = own.hidden_dim, (task.image_size // own.patch_size) ** 2
        tokens = patches + 1
        parts = [
            layer_costs.convolution(task.in_channels, width, kernel=own.patch_size, positions=patches),
            Costs(parameters=(1 + tokens) * width, macs=0),
        ]
        for heads, head_width, hidden in zip(own.num_heads, own.head_widths, own.hidden_widths, strict=True):
            merged = layer_costs.num_merged(tokens, own.options.merged_tokens, num_kept=1)
            parts.append(
                layer_costs.transformer_block(
                    width,
                    heads=heads,
                    head_width=head_width,
                    hidden=hidden,
                    tokens=tokens,
                    products=layer_costs.attention_products(heads * head_width, windows=1, tokens=tokens),
                    options=own.options,
                    merged=merged,
                )
            )
            tokens -= merged
        widths = [width for _ in own.auxiliary_blocks]
        parts += [
            layer_costs.layer_norm(width),
            layer_costs.linear(width, task.num_classes, tokens=1),
            layer_costs.auxiliary_classifiers(widths, task.num_classes, computed=auxiliary),
        ]
        return layer_costs.total(parts)

    def _options(self, depth: int) -> dict[str, Sequence[Any]]:
        """Values of each dimension of a topology with this depth."""
        return {**self._sizes(depth), **self.options.choices}

    def _values(self, topology: AutoFormerTopology) -> dict[str, Scalar]:
        return {**_values(topology), **self.options.values(topology.options)}

    def _sizes(self, depth: int) -> dict[str, Sequence[Any]]:
        """Values of each dimension besides options."""
        ranges = self._ranges
        options: dict[str, Sequence[Any]] = {"topology.hidden_dim": ranges.hidden_dim, "topology.depth": ranges.depth}
        for block in range(1, depth + 1):
            options |= zip(_block_names(block), (ranges.heads, ranges.mlp_ratio), strict=True)
        return options

    def _other_options(self, depth: int, name: str, value: Scalar) -> list[Any]:
        return [option for option in self._options(depth)[name] if option != value]

    def _changed(self, topology: AutoFormerTopology, name: str, value: Any) -> AutoFormerTopology:
        if name == "topology.depth":
            return topology.with_size(depths=(value,))
        values = {**self._values(topology), name: value}
        options = self.options.at(values, base=topology.options)
        return _from_values(values, topology.patch_size, topology.head_width, options)


def _from_values(
    values: Mapping[str, Any], patch_size: int, head_width: int | None, options: BlockOptions
) -> AutoFormerTopology:
    """The topology of flat values; values of blocks beyond its depth are ignored."""
    blocks = [_block_names(block) for block in range(1, values["topology.depth"] + 1)]
    return AutoFormerTopology(
        hidden_dim=values["topology.hidden_dim"],
        depth=values["topology.depth"],
        num_heads=tuple(values[heads] for heads, _ in blocks),
        mlp_ratio=tuple(values[ratio] for _, ratio in blocks),
        patch_size=patch_size,
        head_width=head_width,
        options=options,
    )


def _block_names(block: int) -> tuple[str, str]:
    """Names of the dimensions of a block; the first block is 1."""
    return f"topology.block{block}.heads", f"topology.block{block}.mlp_ratio"


def _values(topology: AutoFormerTopology) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {"topology.hidden_dim": topology.hidden_dim, "topology.depth": topology.depth}
    for block, values in enumerate(zip(topology.num_heads, topology.mlp_ratio, strict=True), start=1):
        flat |= zip(_block_names(block), values, strict=True)
    return flat


def _autoformer(topology: Topology) -> AutoFormerTopology:
    if not isinstance(topology, AutoFormerTopology):
        raise TypeError(f"the space autoformer works on AutoFormerTopology, but got {type(topology).__name__}.")
    return topology


def _sharing_problem(topology: AutoFormerTopology) -> str | None:
    """Why the heads cannot share the width evenly, or `None`."""
    if topology.head_width is not None or topology.hidden_dim % topology.width_unit == 0:
        return None
    unit, width = topology.width_unit, topology.hidden_dim
    below = width // unit * unit
    nearest = f"{below} or {below + unit}" if below else str(unit)
    heads = ", ".join(str(count) for count in sorted(set(topology.num_heads)))
    return f"must be a multiple of {unit}, so that {heads} heads can share it, but got {width}. Use {nearest}."


def _number_problem(name: str, value: float) -> str | None:
    if name == "ratio":
        return None if value > 0 else f"must be above 0, but got {decimal(value)}."
    return None if value >= 1 else f"must be at least 1, but got {value}."
