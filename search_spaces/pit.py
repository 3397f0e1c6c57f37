"""PiT's search space: vision transformers of three stages with pooling of the tokens between them.

The text form is `depth,heads|depth,heads|depth,heads|mlp_ratio,base_dim,patch_size`, such as `2,2|8,4|4,4|6,16,16`; the
patch size may be omitted if it is 16. Options of the blocks are a further part (`search_spaces.options`). Patches
overlap by half.

Source: Heo et al. 2021, PiT, arXiv:2103.16302; sampled as in ViT-Bench-101 (Wei et al. 2024, Auto-Prox,
arXiv:2312.09059).
"""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, field_validator

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
from search_spaces.text_form import MAX_BLOCKS, MAX_NUMBER, fail, read_part, shown

NUM_STAGES = 3
DEFAULT_PATCH_SIZE = 16

BASE_DIMS = (16, 24, 32, 40)
MLP_RATIOS = (2, 4, 6, 8)
DEPTHS = (
    (1, 6, 6),
    (1, 8, 4),
    (2, 4, 6),
    (2, 6, 4),
    (2, 6, 6),
    (2, 8, 2),
    (2, 8, 4),
    (3, 4, 6),
    (3, 6, 4),
    (3, 8, 2),
)
"""Blocks of the three stages in the published table."""
HEADS = tuple(
    (first, second, third)
    for first in (2, 4, 8)
    for second in (2, 4, 8)
    for third in (2, 4, 8)
    if first <= second <= third
)
"""Heads of the three stages, never fewer than in the previous stage."""

_EXAMPLE = "2,2|8,4|4,4|6,16"
_Whole = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
_Blocks = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
_Triple = tuple[_Whole, _Whole, _Whole]


class PitTopology(Topology):
    """One PiT; its fields are the keys of `arch` in a table of published accuracies."""

    base_dim: _Whole
    """Channels of a head; a stage is `base_dim * heads` wide."""
    mlp_ratio: _Whole
    """Hidden width of each MLP as a multiple of its stage's width."""
    depth: tuple[_Blocks, _Blocks, _Blocks]
    """Blocks of each stage."""
    num_heads: _Triple
    """Attention heads of each stage; each number divides the next."""
    patch_size: _Whole = DEFAULT_PATCH_SIZE
    """Side of a patch in pixels, an even number; neighbouring patches are half of it apart."""
    options: BlockOptions = NO_OPTIONS
    """Optional parts of the blocks."""

    @field_validator("patch_size")
    @classmethod
    def _has_a_half(cls, value: int) -> int:
        problem = _number_problem("patch_size", value)
        if problem:
            raise ValueError(problem)
        return value

    @property
    def text(self) -> str:
        stages = (f"{depth},{heads}" for depth, heads in zip(self.depth, self.num_heads, strict=True))
        return with_options([*stages, f"{self.mlp_ratio},{self.base_dim},{self.patch_size}"], self.options)

    @property
    def id(self) -> str:
        return f"pit:{self.text}"

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of each stage."""
        first, second, third = (self.base_dim * heads for heads in self.num_heads)
        return first, second, third

    @property
    def head_widths(self) -> tuple[int]:
        """`base_dim`, the channels per head of every stage."""
        return (self.base_dim,)

    @property
    def auxiliary_widths(self) -> tuple[int, ...]:
        """Widths of the features that auxiliary heads classify."""
        return self.widths[:-1] if self.options.deep_supervision else ()

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of each stage, and the hidden channels of its MLPs."""
        return *self.widths, *(self.mlp_ratio * width for width in self.widths)

    @property
    def stride(self) -> int:
        """Distance between neighbouring patches in pixels."""
        return self.patch_size // 2

    @property
    def depths(self) -> tuple[int, int, int]:
        """Blocks of each stage."""
        return self.depth

    @property
    def width(self) -> int:
        """`base_dim`."""
        return self.base_dim

    @property
    def width_unit(self) -> int:
        """1: any width is possible, since it is the width of one head."""
        return 1

    def with_size(self, *, depths: Sequence[int] | None = None, width: int | None = None) -> "PitTopology":
        """The same topology with other depths, another width, or both; `None` leaves a value unchanged.

        Raises:
            ValueError: A depth is outside 1 to `MAX_BLOCKS`, there are not three depths, or a number is too large for
                the text form.
        """
        new_depths = self.depth if depths is None else tuple(depths)
        if len(new_depths) != NUM_STAGES:
            raise ValueError(
                f"`depths` must have one number of blocks for each of the three stages, but got {list(new_depths)}. "
                "Use depths such as [2, 6, 4]."
            )
        fields = {"depth": new_depths, "base_dim": self.base_dim if width is None else width}
        return PitTopology.model_validate({**dict(self), **fields})


class PitSpace(NumericModel):
    """The 1,600 topologies from which ViT-Bench-101 samples its PiTs."""

    topology_type: ClassVar[type[Topology]] = PitTopology
    model_config = ConfigDict(frozen=True, extra="forbid")
    patch_size: _Whole = Field(
        default=DEFAULT_PATCH_SIZE, description="side of a patch in pixels, an even number; patches overlap by half"
    )
    options: OptionSearch = Field(default=OptionSearch(), description="optional parts of the blocks")

    @field_validator("patch_size")
    @classmethod
    def _has_a_half(cls, value: int) -> int:
        problem = _number_problem("patch_size", value)
        if problem:
            raise ValueError(problem)
        return value

    def dimensions(self) -> tuple[Dimension, ...]:
        """Width of a head, MLP ratio, depths of all stages as one choice, heads of all stages too, searched options."""
        return (
            Integer(name="topology.base_dim", low=16, high=40, step=8),
            Integer(name="topology.mlp_ratio", low=2, high=8, step=2),
            Choice(name="topology.depth", options=_OPTIONS["topology.depth"]),
            Choice(name="topology.num_heads", options=_OPTIONS["topology.num_heads"]),
            *self.options.dimensions(),
        )

    def decode(self, point: Point) -> PitTopology:
        """The topology at a point; keys that are not dimensions of this space are ignored.

        Raises:
            ValueError: A dimension is missing or has a value outside its range.
        """
        for name, options in _OPTIONS.items():
            if name not in point:
                raise ValueError(f"a point must have a value for {name}, but got only {', '.join(point) or 'nothing'}.")
            if point[name] not in options:
                raise ValueError(f"{name} must be one of {'; '.join(map(str, options))}, but got {point[name]!r}.")
        return _from_values(point, self.patch_size, self.options.at(point))

    def encode(self, topology: Topology) -> Point:
        """The point of a topology of this space.

        Raises:
            ValueError: The topology is not in this space.
        """
        own = _pit(topology)
        point = _values(own)
        has_settings = own.patch_size == self.patch_size and self.options.contains(own.options)
        if not has_settings or any(value not in _OPTIONS[name] for name, value in point.items()):
            raise ValueError(
                f"a topology must be in the space with patch size {self.patch_size} and options {self.options.text} to "
                f"have a point, but got {own.text}. Use a space with its settings; grown topologies have no point."
            )
        return point | self.options.values(own.options)

    @classmethod
    def parse(cls, text: str) -> PitTopology:
        """Read `depth,heads|` three times, `mlp_ratio,base_dim[,patch_size]`, and options if there are any.

        Raises:
            ValueError: The text is malformed; the message names the character.
        """
        (*stages, last), options = split_options(text, num_parts=NUM_STAGES + 1)
        if len(stages) != NUM_STAGES:
            raise ValueError(
                "a PiT topology must have four parts separated by '|', three stages and the sizes "
                f"(such as {_EXAMPLE}), but got {len(stages) + 1} in {shown(text)}."
            )
        start, found = 0, []
        for index, part in enumerate(stages, start=1):
            found.append(read_part(text, part, start, f"stage {index}", ("depth", "heads"), 2, _number_problem))
            if index > 1 and found[-1]["heads"] % found[-2]["heads"]:
                place = start + part.index(",") + 1
                fail(text, place, f"heads of stage {index}", _heads_problem(found[-2]["heads"], found[-1]["heads"]))
            start += len(part) + 1
        names = ("mlp_ratio", "base_dim", "patch_size")
        sizes = read_part(text, last, start, "the last part", names, 2, _number_problem)
        stages_of = {
            field: tuple(stage[name] for stage in found) for field, name in (("depth", "depth"), ("num_heads", "heads"))
        }
        return PitTopology.model_validate({**stages_of, **sizes, "options": options})

    def describe(self, topology: Topology) -> dict[str, Scalar]:
        """All fields by flat name; depths and heads are texts such as `2,8,4`."""
        own = _pit(topology)
        return {**_values(own), "topology.patch_size": own.patch_size, **self.options.describe(own.options)}

    def sample(self, rng: random.Random) -> PitTopology:
        """A topology with each dimension drawn uniformly and independently."""
        return self.decode({name: rng.choice(options) for name, options in self._choices().items()})

    def mutate(self, topology: Topology, rng: random.Random) -> PitTopology:
        """A topology that differs in one dimension, drawn uniformly."""
        own = _pit(topology)
        return self._changed(own, mutated(self._values(own), self._choices(), rng))

    def crossover(self, first: Topology, second: Topology, rng: random.Random) -> PitTopology:
        """Each dimension from either parent; the patch size is that of `first`."""
        own = _pit(first)
        return self._changed(own, crossed(self._values(own), self._values(_pit(second)), rng))

    def neighbours(self, topology: Topology) -> tuple[PitTopology, ...]:
        """All topologies that differ in exactly one dimension."""
        own = _pit(topology)
        return tuple(self._changed(own, values) for values in single_changes(self._values(own), self._choices()))

    @classmethod
    def problem(cls, topology: Topology, task: ImageTask) -> str | None:
        """Why the topology cannot be built for the task, or `None` if it can."""
        own = _pit(topology)
        size, patch, stride = task.image_size, own.patch_size, own.stride
        if size < patch or (size - patch) % stride:
            below = patch + max(0, size - patch) // stride * stride
            nearest = f"{below} or {below + stride}" if size > patch else str(patch)
            return (
                f"the image size must be the patch size, {patch} pixels, plus a multiple of {stride}, but got "
                f"{size}. Use {nearest}."
            )
        for stage, (fewer, more) in enumerate(pairwise(own.num_heads), start=2):
            if more % fewer:
                return f"the heads of stage {stage} {_heads_problem(fewer, more)}"
        return head_norm_problem(own.options, own.head_widths)

    @classmethod
    def costs(cls, topology: Topology, task: ImageTask, *, auxiliary: bool = False) -> Costs:
        """Parameters and MACs of the model that `trainers.models.pit` builds.

        Args:
            topology: The topology of the model.
            task: Image size, channels and classes.
            auxiliary: Whether auxiliary heads are computed, as in the model's `forward`.
        """
        own = _pit(topology)
        widths = own.widths
        side = (task.image_size - own.patch_size) // own.stride + 1
        parts = [
            layer_costs.convolution(task.in_channels, widths[0], kernel=own.patch_size, positions=side**2),
            Costs(parameters=(1 + side**2) * widths[0], macs=0),
        ]
        for index, (depth, width, heads) in enumerate(zip(own.depth, widths, own.num_heads, strict=True)):
            if index:
                before, side = widths[index - 1], -(-side // 2)
                parts += [
                    layer_costs.convolution(before, width, kernel=3, positions=side**2, groups=before),
                    layer_costs.linear(before, width, tokens=1),
                ]
            tokens = side**2 + 1
            wanted = own.options.merged_tokens if index == NUM_STAGES - 1 else 0
            for _ in range(depth):
                merged = layer_costs.num_merged(tokens, wanted, num_kept=1)
                parts.append(
                    layer_costs.transformer_block(
                        width,
                        heads=heads,
                        head_width=own.base_dim,
                        hidden=own.mlp_ratio * width,
                        tokens=tokens,
                        products=layer_costs.attention_products(width, windows=1, tokens=tokens),
                        options=own.options,
                        merged=merged,
                    )
                )
                tokens -= merged
        parts += [
            layer_costs.layer_norm(widths[-1]),
            layer_costs.linear(widths[-1], task.num_classes, tokens=1),
            layer_costs.auxiliary_classifiers(own.auxiliary_widths, task.num_classes, computed=auxiliary),
        ]
        return layer_costs.total(parts)

    def _choices(self) -> dict[str, tuple[Any, ...]]:
        """Values of each dimension."""
        return {**_OPTIONS, **self.options.choices}

    def _values(self, topology: PitTopology) -> dict[str, Scalar]:
        return {**_values(topology), **self.options.values(topology.options)}

    def _changed(self, topology: PitTopology, values: Mapping[str, Scalar]) -> PitTopology:
        """The topology with other values of the dimensions."""
        return _from_values(values, topology.patch_size, self.options.at(values, base=topology.options))


def _joined(values: Sequence[int]) -> str:
    """Numbers as one option of a choice, such as `2,8,4`."""
    return ",".join(map(str, values))


_OPTIONS: dict[str, tuple[Any, ...]] = {
    "topology.base_dim": BASE_DIMS,
    "topology.mlp_ratio": MLP_RATIOS,
    "topology.depth": tuple(map(_joined, DEPTHS)),
    "topology.num_heads": tuple(map(_joined, HEADS)),
}
"""Values of each dimension in the order of `dimensions`."""


def _values(topology: PitTopology) -> dict[str, Scalar]:
    return {
        "topology.base_dim": topology.base_dim,
        "topology.mlp_ratio": topology.mlp_ratio,
        "topology.depth": _joined(topology.depth),
        "topology.num_heads": _joined(topology.num_heads),
    }


def _from_values(values: Mapping[str, Any], patch_size: int, options: BlockOptions) -> PitTopology:
    return PitTopology.model_validate(
        {
            "base_dim": values["topology.base_dim"],
            "mlp_ratio": values["topology.mlp_ratio"],
            "depth": [int(number) for number in values["topology.depth"].split(",")],
            "num_heads": [int(number) for number in values["topology.num_heads"].split(",")],
            "patch_size": patch_size,
            "options": options,
        }
    )


def _pit(topology: Topology) -> PitTopology:
    if not isinstance(topology, PitTopology):
        raise TypeError(f"the space pit works on PitTopology, but got {type(topology).__name__}.")
    return topology


def _number_problem(name: str, value: int) -> str | None:
    if value < 1:
        return f"must be at least 1, but got {value}."
    if name == "depth" and value > MAX_BLOCKS:
        return f"must be at most {MAX_BLOCKS:,}, but got {value:,}."
    if name == "patch_size" and value % 2:
        return f"must be an even number, so that patches can overlap by half, but got {value}."
    return None


def _heads_problem(fewer: int, more: int) -> str:
    return f"must be a multiple of the {fewer} of the previous stage, but got {more}."
