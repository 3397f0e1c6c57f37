"""Optional parts of a topology's blocks: off by default, fixed or searched by a space.

In the text form of a topology they are a further part at its end, such as `...|192,16|qk_norm,layer_scale`. A topology
without options has the text that it had before there were options.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)

from search_spaces.dimensions import Choice, Point, Scalar
from search_spaces.numbers import NumericModel
from search_spaces.text_form import MAX_NUMBER, fail, shown

_NUMBERS = frozenset({"merged_tokens"})
"""Options with a number."""
_POSITIVE = re.compile(r"0*[1-9][0-9]{0,3}", re.ASCII)
PREFIX = "topology."
"""Prefix of the dimensions' names."""

_Value = TypeVar("_Value")


class BlockOptions(NumericModel):
    """The optional parts of every block of a topology."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    qk_norm: StrictBool = False
    """Layer norms of the queries and keys of each head. Source: Dehghani et al. 2023, arXiv:2302.05442."""
    layer_scale: StrictBool = False
    """A learned factor of each channel that a branch adds. Source: Touvron et al. 2021, CaiT, arXiv:2103.17239."""
    grn: StrictBool = False
    """Global response normalisation in each MLP. Source: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808."""
    sigmoid_attention: StrictBool = False
    """Attention weights `sigmoid(q k / sqrt(d) - log n)`. Source: Ramapuram et al. 2024, arXiv:2409.04431."""
    deep_supervision: StrictBool = False
    """Classifiers of inner features, whose losses are added in training. Source: Lee et al. 2015, arXiv:1409.5185."""
    merged_tokens: StrictInt = Field(default=0, ge=0, le=MAX_NUMBER)
    """Tokens that each block merges into similar ones, in spaces with stages only in the last stage. Source: Bolya et
    al. 2023, ToMe, arXiv:2210.09461."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the options that are on."""
        return tuple(name for name, value in self if value)

    @property
    def text(self) -> str:
        """The options as the last part of a text form, such as `qk_norm,merged_tokens=4`; empty if all are off."""
        given = ((name, getattr(self, name)) for name in self.names)
        return ",".join(name if value is True else f"{name}={value}" for name, value in given)


NO_OPTIONS = BlockOptions()


def with_options(parts: Sequence[str], options: BlockOptions) -> str:
    """The text form of a topology from its other parts."""
    return "|".join([*parts, options.text] if options.text else parts)


def split_options(text: str, *, num_parts: int | None = None) -> tuple[list[str], BlockOptions]:
    """The parts of a text form without the last one, and the options that the last part names, if there is one.

    Args:
        text: The text form.
        num_parts: Number of parts without options; `None` if it varies. Options begin with a letter.

    Raises:
        ValueError: An option is unknown or repeated; the message names the character.
    """
    parts = text.split("|")
    is_further = len(parts) > 1 if num_parts is None else len(parts) == num_parts + 1
    if not (is_further and parts[-1].strip()[:1].isalpha()):
        return parts, NO_OPTIONS
    *parts, last = parts
    position = len(text) - len(last)
    found: dict[str, bool | int] = {}
    for piece in last.split(","):
        name, is_number, number = piece.strip().partition("=")
        if name not in BlockOptions.model_fields:
            known = f"one of {', '.join(BlockOptions.model_fields)}"
            fail(text, position, "an option", f"must be {known}, but got {shown(name)}.{_hint(name)}")
        if name in found:
            fail(text, position, "an option", f"must be named once, but got {shown(name)} again.")
        if name in _NUMBERS and not _POSITIVE.fullmatch(number):
            fail(
                text,
                position,
                name,
                f"must be written {name}=4, with a number of up to 4 digits, but got {shown(piece)}.",
            )
        if name not in _NUMBERS and is_number:
            fail(text, position, name, f"must be written without a value, but got {shown(piece)}.")
        found[name] = int(number) if is_number else True
        position += len(piece) + 1
    return parts, BlockOptions.model_validate(found)


def head_norm_problem(options: BlockOptions, head_widths: Sequence[int]) -> str | None:
    """Why queries and keys cannot be normalised, given the channels of the heads; `None` if they can or are not."""
    if options.qk_norm and min(head_widths) < 2:
        return "qk_norm needs at least 2 channels per head, but a head has 1. Use a larger width or fewer heads."
    return None


def _as_list(raw: Any) -> Any:
    return raw if isinstance(raw, list | tuple) else [raw]


_Values = Annotated[tuple[_Value, ...], Field(min_length=1), BeforeValidator(_as_list)]
_OFF = (False,)


class OptionSearch(NumericModel):
    """The options of a space's topologies: a value fixes an option, a list of values searches it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    qk_norm: _Values[StrictBool] = Field(default=_OFF, description="layer norms of the queries and keys of each head")
    layer_scale: _Values[StrictBool] = Field(
        default=_OFF,
        description="a learned factor of each channel that attention and MLP add; initially 0.1 for up to 18 blocks, "
        "1e-5 for up to 24, and 1e-6 for more",
    )
    grn: _Values[StrictBool] = Field(
        default=_OFF, description="global response normalisation of the hidden channels of each MLP"
    )
    sigmoid_attention: _Values[StrictBool] = Field(
        default=_OFF, description="attention weights from a sigmoid instead of the softmax"
    )
    deep_supervision: _Values[StrictBool] = Field(
        default=_OFF,
        description="further classifiers after each stage but the last (in autoformer: after a third and two thirds of "
        "the blocks); 0.3 times their losses are added to the training loss, and exported models lack them",
    )
    merged_tokens: _Values[Annotated[StrictInt, Field(ge=0, le=MAX_NUMBER)]] = Field(
        default=(0,),
        description="tokens that each block merges into similar ones (in as-vit and pit: each block of the last stage)",
    )

    @model_validator(mode="before")
    @classmethod
    def _options_are_known(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping | OptionSearch):
            raise ValueError(f"must be a mapping such as {{qk_norm: true}}, but got {raw!r}.")
        for name in raw if isinstance(raw, Mapping) else ():
            if name not in cls.model_fields:
                raise ValueError(f"must only have {', '.join(cls.model_fields)}, but got {name!r}.{_hint(str(name))}")
        return raw

    @field_validator("*")
    @classmethod
    def _values_differ(cls, values: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"must have different values, but got {list(values)}. Remove the duplicate.")
        return values

    @cached_property
    def by_name(self) -> dict[str, tuple[Any, ...]]:
        """The values of each option."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @cached_property
    def fixed(self) -> BlockOptions:
        """The options with the first value of each."""
        return BlockOptions.model_validate({name: values[0] for name, values in self.by_name.items()})

    @cached_property
    def choices(self) -> dict[str, tuple[Scalar, ...]]:
        """The values of each searched option, by the name of its dimension."""
        return {PREFIX + name: values for name, values in self.by_name.items() if len(values) > 1}

    def dimensions(self) -> tuple[Choice, ...]:
        """The dimensions of the searched options."""
        return tuple(Choice(name=name, options=values) for name, values in self.choices.items())

    def values(self, options: BlockOptions) -> Point:
        """The values of the searched options, by the name of their dimension."""
        return {name: getattr(options, name.removeprefix(PREFIX)) for name in self.choices}

    def at(self, values: Mapping[str, Scalar], *, base: BlockOptions | None = None) -> BlockOptions:
        """The options with the values of the searched ones; the others are those of `base`, or the fixed ones.

        Raises:
            ValueError: A searched option is missing or has a value that is not searched.
        """
        start = self.fixed if base is None else base
        if not self.choices:
            return start
        update: dict[str, Scalar] = {}
        for name, known in self.choices.items():
            if name not in values:
                raise ValueError(
                    f"a point must have a value for {name}, but got only {', '.join(values) or 'nothing'}."
                )
            if not any(type(one) is type(values[name]) and one == values[name] for one in known):
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, but got {values[name]!r}.")
            update[name.removeprefix(PREFIX)] = values[name]
        return start.model_copy(update=update)

    def contains(self, options: BlockOptions) -> bool:
        """Whether the space has topologies with these options."""
        return all(getattr(options, name) in values for name, values in self.by_name.items())

    def describe(self, options: BlockOptions) -> dict[str, Scalar]:
        """Searched options and those that are on, by flat name such as `topology.qk_norm`."""
        return {PREFIX + name: value for name, value in options if value or PREFIX + name in self.choices}

    @property
    def text(self) -> str:
        """The values for messages, such as `qk_norm: true`; `none` if all options are off."""
        given = {name: values for name, values in self.by_name.items() if values != (getattr(NO_OPTIONS, name),)}
        return ", ".join(f"{name}: {' or '.join(map(str, values)).lower()}" for name, values in given.items()) or "none"


def _hint(name: str) -> str:
    nearest = difflib.get_close_matches(name, list(BlockOptions.model_fields), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
