"""Describes a model for the rules of learning rates: the role and level of each parameter, and its fan-in."""

import re
from collections.abc import Sequence
from functools import reduce

import torch
from torch import nn

from plugins.protocols import (
    NetworkDescription,
    NetworkPart,
    ParameterLayout,
    PartFactors,
    RatedPart,
    RateRule,
    is_block,
)
from plugins.protocols.rates import Role
from plugins.registry import create, load, parse_topology
from search_spaces.base import Growable, ImageTask, Topology
from search_spaces.recipes import Recipe
from trainers.models.building import space_of
from trainers.training.methods import excluded_optimizer
from trainers.training.row import layout_of

_BEFORE_STAGE = re.compile(r"pools\.(\d+)\.")
"""Names of layers that lead to stage `number + 1` but are registered after the blocks (PiT)."""
_UNIFORM = "uniform"
_FUSED = ("query", "key", "value")


class UnsuitableRatesError(ValueError):
    """A rule of learning rates does not suit the model or the optimizer."""


@torch.no_grad()
def prepare_rates(model: nn.Module, recipe: Recipe, topology: str, task: ImageTask) -> tuple[RatedPart, ...]:
    """The learning rates of the parts of a new model, whose initial weights are scaled as the recipe asks for.

    Args:
        model: A model with its random initial weights. It is changed in place.
        recipe: The recipe; the factors of several rules are multiplied.
        topology: `space:text` of the model.
        task: Image size, channels and classes.

    Raises:
        UnsuitableRatesError: A rule does not suit the model or the optimizer; the message explains why.
    """
    choices = [choice for choice in recipe.rates if choice.name != _UNIFORM]
    if not choices:
        return ()
    problem = excluded_optimizer(recipe.rates, recipe.optimizer.name)
    if problem is not None:
        raise UnsuitableRatesError(problem)
    layout = layout_of(model)
    network = describe(model, layout, topology, task)
    factors = combined([create("rates", choice.name, choice.settings) for choice in choices], network)
    parameters = dict(model.named_parameters())
    starts = dict(zip(layout.names, layout.starts, strict=True))
    for part, own in zip(network.parts, factors, strict=True):
        if own.initial != 1.0:
            name = part.name.partition("[")[0]
            parameters[name].view(-1)[part.start - starts[name] : part.stop - starts[name]].mul_(own.initial)
    return _rated(network.parts, factors)


def combined(rules: Sequence[RateRule], network: NetworkDescription) -> list[PartFactors]:
    """The products of the factors of several rules, for each part of a network."""
    try:
        found = [rule.factors(network) for rule in rules]
    except ValueError as error:
        raise UnsuitableRatesError(str(error)) from error
    return [reduce(_product, own, PartFactors()) for own in zip(*found, strict=True)]


def _product(one: PartFactors, other: PartFactors) -> PartFactors:
    return PartFactors(one.rate * other.rate, one.initial * other.initial)


def _rated(parts: Sequence[NetworkPart], factors: Sequence[PartFactors]) -> tuple[RatedPart, ...]:
    """The parts whose rate differs from that of the step; neighbours with equal rates are joined."""
    rated: list[RatedPart] = []
    for part, own in zip(parts, factors, strict=True):
        if own.rate == 1.0:
            continue
        if rated and rated[-1].stop == part.start and rated[-1].factor == own.rate:
            rated[-1] = rated[-1]._replace(stop=part.stop)
        else:
            rated.append(RatedPart(part.start, part.stop, own.rate))
    return tuple(rated)


def describe(model: nn.Module, layout: ParameterLayout, topology: str, task: ImageTask) -> NetworkDescription:
    """The description of a model that was built from a topology.

    Args:
        model: The model; its blocks are found by their parts (`plugins.protocols.TransformerBlock`).
        layout: Layout of its parameters in a row.
        topology: `space:text`.
        task: Image size, channels and classes.
    """
    parsed: Topology = parse_topology(topology)
    growable = parsed if isinstance(parsed, Growable) else None

    def at_width(width: int) -> NetworkDescription:
        assert growable is not None
        try:
            resized = growable.with_size(width=width)
            other = load("models", space_of(topology))(resized, task)
        except ValueError as error:
            raise ValueError(f"rates: {topology} must exist with the width {width}, but: {error}") from error
        return describe(other, layout_of(other), resized.id, task)

    return NetworkDescription(
        parts=network_parts(model, layout),
        num_blocks=sum(is_block(module) for module in model.modules()),
        initial_exponent=getattr(type(model), "initial_exponent", None),
        width=None if growable is None else growable.width,
        at_width=at_width,
    )


def network_parts(model: nn.Module, layout: ParameterLayout) -> tuple[NetworkPart, ...]:
    """The parameters of a model in the order of its row, with fused queries, keys and values split."""
    modules = dict(model.named_modules())
    blocks = [name for name, module in modules.items() if is_block(module)]
    levels = _levels(model, blocks)
    found: list[NetworkPart] = []
    for name, shape, start in zip(layout.names, layout.shapes, layout.starts, strict=True):
        owner_name, _, own_name = name.rpartition(".")
        owner = modules[owner_name]
        block = next((block for block in blocks if _owns(block, name)), "")
        inner = name.removeprefix(f"{block}.") if block else ""
        layer = owner if isinstance(owner, nn.Linear | nn.Conv2d) else None
        part = NetworkPart(
            name=name,
            start=start,
            stop=start + shape.numel(),
            role=_role(inner, owner, levels[name], top=len(blocks) + 1),
            level=levels[name],
            fan_in=1 if layer is None else layer.weight[0].numel(),
            fan_out=1 if layer is None else len(layer.weight),
            is_matrix=layer is not None and own_name == "weight",
        )
        is_fused = inner.startswith("attn.qkv.") and shape[0] % 3 == 0
        heads = getattr(modules[f"{block}.attn"], "heads", 1) if is_fused else 1
        found += _split(part, head_width=shape[0] // 3 // heads) if is_fused else [part]
    return tuple(found)


def _split(fused: NetworkPart, *, head_width: int) -> list[NetworkPart]:
    """The queries', keys' and values' parts of a parameter that fuses them."""
    third = (fused.stop - fused.start) // 3
    return [
        fused._replace(
            name=f"{fused.name}[{kind}]",
            start=fused.start + index * third,
            stop=fused.start + (index + 1) * third,
            role="value-output" if kind == "value" else "query-key",
            head_width=head_width,
        )
        for index, kind in enumerate(_FUSED)
    ]


def _owns(prefix: str, name: str) -> bool:
    return bool(prefix) and name.startswith(f"{prefix}.")


def _levels(model: nn.Module, blocks: Sequence[str]) -> dict[str, int]:
    """The level of each parameter by name; see `NetworkPart.level`.

    A parameter that is registered before the first block belongs to the embedding, one after the last block to the
    head, and one between two blocks leads to the second.
    """
    numbers = {name: number for number, name in enumerate(blocks, start=1)}
    levels: dict[str, int] = {}
    passed = 0
    for name, _ in model.named_parameters():
        own = next((number for block, number in numbers.items() if _owns(block, name)), None)
        before = _BEFORE_STAGE.match(name)
        if own is not None:
            levels[name] = passed = own
        elif before is not None:
            stage = f"stages.{int(before[1]) + 1}"
            levels[name] = next((number for block, number in numbers.items() if _owns(stage, block)), passed)
        else:
            levels[name] = 0 if passed == 0 else passed + 1
    return levels


def _role(inner: str, owner: nn.Module, level: int, *, top: int) -> Role:
    """The role of a parameter; `inner` is its name within its block, empty outside blocks."""
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
        return "norm"
    if inner.startswith("attn.qkv."):
        return "query-key"
    if inner.startswith("attn."):
        return "value-output"
    if inner:
        return "mlp"
    if level == 0:
        return "embedding"
    return "head" if level == top else "between"
