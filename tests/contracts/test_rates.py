"""Rules for every rule of learning rates, on models of all spaces, and the behaviour of ours."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.spec.recipe_checks import recipe_problems
from plugins.protocols import NetworkDescription, PluginCard, RateRule
from plugins.registry import PluginSettingsError, available, create, parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe, parse_recipe_space
from trainers.models.building import build_model
from trainers.training.network import UnsuitableRatesError, describe, prepare_rates
from trainers.training.row import layout_of

TOPOLOGIES = {
    "as-vit": "as-vit:4,4,2,1|2,4,2,2|2,2,2,1|2,1,2,1|16,8",
    "autoformer": "autoformer:2,2|2,2|16,8",
    "pit": "pit:2,1|1,2|1,2|2,4,8",
}
REQUIRED: dict[str, dict[str, Any]] = {"mup": {"base_width": 4}}
"""Settings without a default."""
TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)


def model_of(space: str, *, width: int | None = None) -> tuple[nn.Module, str]:
    topology = TOPOLOGIES[space]
    if width is not None:
        topology = parse_topology(topology).with_size(width=width).id
    return build_model(topology, TASK, seed=0, device=torch.device("cpu")), topology


def network_of(space: str, *, width: int | None = None) -> NetworkDescription:
    model, topology = model_of(space, width=width)
    return describe(model, layout_of(model), topology, TASK)


NETWORKS = {space: network_of(space) for space in TOPOLOGIES}


@pytest.fixture(params=list(available("rates")))
def rule(request: pytest.FixtureRequest) -> RateRule:
    return create("rates", request.param, REQUIRED.get(request.param))


@pytest.fixture(params=list(TOPOLOGIES))
def space(request: pytest.FixtureRequest) -> str:
    return request.param


def by_part(rule: RateRule, network: NetworkDescription) -> dict[str, tuple[float, float]]:
    return {part.name: tuple(own) for part, own in zip(network.parts, rule.factors(network), strict=True)}


def test_it_has_a_card(rule: RateRule) -> None:
    assert isinstance(rule.card, PluginCard)
    assert rule.card.source
    assert rule.card.cost


def test_every_part_has_positive_factors(rule: RateRule, space: str) -> None:
    found = rule.factors(NETWORKS[space])
    assert len(found) == len(NETWORKS[space].parts)
    assert all(own.rate > 0 and own.initial > 0 and math.isfinite(own.rate * own.initial) for own in found)


def test_the_same_network_has_the_same_factors(rule: RateRule, space: str) -> None:
    assert list(rule.factors(NETWORKS[space])) == list(rule.factors(network_of(space)))


# --- the description of networks ---


def test_the_parts_are_the_parameters_without_overlap(space: str) -> None:
    model, _ = model_of(space)
    network = NETWORKS[space]
    assert sum(part.stop - part.start for part in network.parts) == sum(one.numel() for one in model.parameters())
    ordered = sorted(network.parts, key=lambda part: part.start)
    assert all(before.stop <= after.start for before, after in pairwise(ordered))


def test_levels_rise_from_the_embedding_to_the_head(space: str) -> None:
    network = NETWORKS[space]
    assert network.num_blocks == {"as-vit": 5, "autoformer": 2, "pit": 4}[space]
    levels = {part.level for part in network.parts}
    assert levels == set(range(network.num_blocks + 2))
    for part in network.parts:
        if part.role == "embedding":
            assert part.level == 0
        elif part.role == "head":
            assert part.level == network.num_blocks + 1
        elif part.role != "norm":
            assert 1 <= part.level <= network.num_blocks


@pytest.mark.parametrize(
    ("space", "name", "role", "level", "fan_in"),
    [
        ("as-vit", "stages.0.embed.proj.weight", "embedding", 0, 16),
        ("as-vit", "stages.0.embed.norm.weight", "norm", 0, 1),
        ("as-vit", "stages.1.embed.reduction.weight", "between", 2, 32),
        ("as-vit", "stages.1.blocks.1.attn.qkv.weight[value]", "value-output", 3, 16),
        ("as-vit", "stages.1.blocks.1.attn.qkv.bias[key]", "query-key", 3, 16),
        ("as-vit", "stages.3.blocks.0.mlp.fc2.weight", "mlp", 5, 128),
        ("as-vit", "norm.weight", "norm", 6, 1),
        ("as-vit", "head.0.weight", "head", 6, 64),
        ("autoformer", "class_token", "embedding", 0, 1),
        ("autoformer", "position", "embedding", 0, 1),
        ("autoformer", "patch_embed.bias", "embedding", 0, 64),
        ("autoformer", "blocks.1.attn.proj.weight", "value-output", 2, 16),
        ("autoformer", "head.bias", "head", 3, 16),
        ("pit", "pools.0.conv.weight", "between", 3, 9),
        ("pit", "pools.1.fc.weight", "between", 4, 8),
        ("pit", "stages.2.0.attn.qkv.weight[query]", "query-key", 4, 8),
    ],
)
def test_a_part_has_its_role_level_and_fan_in(space: str, name: str, role: str, level: int, fan_in: int) -> None:
    part = next(part for part in NETWORKS[space].parts if part.name == name)
    assert (part.role, part.level, part.fan_in) == (role, level, fan_in)


def test_queries_keys_and_values_are_the_rows_that_compute_them() -> None:
    model, _ = model_of("autoformer")
    attention = model.blocks[0].attn
    parts = {part.name: part for part in NETWORKS["autoformer"].parts}
    layout = layout_of(model)
    row = torch.zeros(layout.num_numbers)
    for name, view in zip(layout.names, layout.views(row), strict=True):
        view.copy_(dict(model.named_parameters())[name].detach())
    tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    heads = attention._heads(tokens)
    for kind, expected in zip(("query", "key", "value"), heads, strict=True):
        weight, bias = (parts[f"blocks.0.attn.qkv.{one}[{kind}]"] for one in ("weight", "bias"))
        found = tokens @ row[weight.start : weight.stop].view(-1, 16).T + row[bias.start : bias.stop]
        torch.testing.assert_close(found.view(1, 5, 2, 8).transpose(1, 2), expected)


# --- ours ---


def test_blockwise_rates_are_those_of_the_authors(space: str) -> None:
    found = by_part(create("rates", "blockwise"), NETWORKS[space])
    factors = {"norm": 1, "value-output": 4, "mlp": 6, "query-key": 8, "embedding": 10, "between": 6, "head": 6}
    for part in NETWORKS[space].parts:
        assert found[part.name] == (factors[part.role], 1.0)


def test_layer_decay_is_1_at_the_head_and_lowest_at_the_embedding(space: str) -> None:
    network = NETWORKS[space]
    found = by_part(create("rates", "layer-decay", {"decay": 0.5}), network)
    for part in network.parts:
        assert found[part.name] == (pytest.approx(0.5 ** (network.num_blocks + 1 - part.level)), 1.0)
    assert min(found.values()) == (0.5 ** (network.num_blocks + 1), 1.0)


def test_mup_changes_nothing_at_the_base_width(space: str) -> None:
    network = NETWORKS[space]
    found = create("rates", "mup", {"base_width": network.width}).factors(network)
    assert set(found) == {(1.0, 1.0)}


@pytest.mark.parametrize(
    ("space", "name", "rate", "initial"),
    [
        # The width is 4 times that of the base. Linear weights of as-vit and autoformer start with one deviation.
        ("autoformer", "patch_embed.weight", 1, 1),
        ("autoformer", "class_token", 1, 1),
        ("autoformer", "blocks.0.norm1.weight", 1, 1),
        ("autoformer", "blocks.0.attn.qkv.weight[query]", 1 / 8, 1 / 4),
        ("autoformer", "blocks.0.attn.qkv.bias[query]", 1 / 2, 1 / 2),
        ("autoformer", "blocks.0.attn.qkv.weight[key]", 1 / 4, 1 / 2),
        ("autoformer", "blocks.0.attn.qkv.weight[value]", 1 / 4, 1 / 2),
        ("autoformer", "blocks.0.mlp.fc2.weight", 1 / 4, 1 / 2),
        ("autoformer", "blocks.0.mlp.fc2.bias", 1, 1),
        ("autoformer", "head.weight", 1 / 4, 1 / 4),
        ("as-vit", "stages.1.embed.reduction.weight", 1 / 4, 1 / 2),
        ("as-vit", "head.0.weight", 1 / 4, 1 / 2),
        ("as-vit", "head.2.weight", 1 / 4, 1 / 4),
        # Those of pit already fall with the square root of the fan-in.
        ("pit", "stages.1.0.mlp.fc1.weight", 1 / 4, 1),
        ("pit", "stages.1.0.mlp.fc1.bias", 1, 2),
        ("pit", "stages.1.0.attn.qkv.weight[query]", 1 / 8, 1 / 2),
        ("pit", "pools.0.conv.weight", 1, 1),
        ("pit", "head.weight", 1 / 4, 1 / 2),
    ],
)
def test_mup_has_the_factors_of_its_table(space: str, name: str, rate: float, initial: float) -> None:
    width = {"as-vit": 32, "autoformer": 64, "pit": 16}[space]
    network = network_of(space, width=width)
    found = by_part(create("rates", "mup", {"base_width": width // 4}), network)
    assert found[name] == (pytest.approx(rate), pytest.approx(initial))


def test_mup_keeps_the_size_of_logits_and_of_their_change_at_every_width() -> None:
    """The logits fall, their change in a step of sign descent does not grow; without muP, the change grows."""
    changes: dict[str, list[float]] = {"uniform": [], "mup": []}
    for kind, found in changes.items():
        for width in (16, 128):
            recipe = Recipe.model_validate({"rates": {"name": kind, **({"base_width": 16} if kind == "mup" else {})}})
            model, topology = model_of("autoformer", width=width)
            rates = prepare_rates(model, recipe, topology, TASK)
            layout = layout_of(model, rates)
            images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
            before = model(images)
            loss = nn.functional.cross_entropy(before, torch.arange(8))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            row = torch.ones(layout.num_numbers)
            factors = layout.rate_factors(row)
            views = dict(zip(layout.names, layout.views(row if factors is None else factors), strict=True))
            with torch.no_grad():
                for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
                    parameter.sub_(1e-3 * views[name] * gradient.sign())
                found.append(float((model(images) - before).abs().mean()))
    assert changes["uniform"][1] > 4 * changes["uniform"][0]
    assert changes["mup"][1] < 2 * changes["mup"][0]


def test_initial_weights_are_scaled_in_place() -> None:
    plain, topology = model_of("autoformer", width=64)
    scaled, _ = model_of("autoformer", width=64)
    recipe = Recipe.model_validate({"rates": {"name": "mup", "base_width": 16}})
    rates = prepare_rates(scaled, recipe, topology, TASK)
    assert rates
    torch.testing.assert_close(scaled.head.weight, plain.head.weight / 4)
    query, key, value = scaled.blocks[0].attn.qkv.weight.chunk(3)
    before = plain.blocks[0].attn.qkv.weight.chunk(3)
    torch.testing.assert_close(query, before[0] / 4)
    torch.testing.assert_close(key, before[1] / 2)
    torch.testing.assert_close(value, before[2] / 2)
    assert torch.equal(scaled.position, plain.position)


def test_uniform_rates_leave_the_row_without_factors() -> None:
    model, topology = model_of("pit")
    assert prepare_rates(model, Recipe(), topology, TASK) == ()


def test_the_factors_of_several_rules_are_multiplied() -> None:
    model, topology = model_of("autoformer")
    recipe = Recipe.model_validate({"rates": ["blockwise", {"name": "layer-decay", "decay": 0.5}]})
    layout = layout_of(model, prepare_rates(model, recipe, topology, TASK))
    factors = layout.rate_factors(torch.zeros(layout.num_numbers))
    assert factors is not None
    named = dict(zip(layout.names, layout.views(factors), strict=True))
    assert set(named["class_token"].flatten().tolist()) == {10 * 0.5**3}
    assert named["blocks.1.attn.qkv.weight"].flatten()[[0, -1]].tolist() == [8 * 0.5, 4 * 0.5]
    assert set(named["head.weight"].flatten().tolist()) == {6.0}


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "settings", "place"),
    [
        ("blockwise", {"mlp": 0.0}, "mlp"),
        ("layer-decay", {"decay": 1.5}, "decay"),
        ("mup", {}, "base_width"),
        ("mup", {"base_width": 0}, "base_width"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], place: str) -> None:
    with pytest.raises(PluginSettingsError, match=place):
        create("rates", name, settings)


def test_mup_with_sgd_is_refused_in_a_study_file_and_in_training() -> None:
    raw = {"optimizer": ["adamw", "sgd"], "rates": ["uniform", {"name": "mup", "base_width": 4}]}
    (problem,) = recipe_problems(raw, ("recipe",))
    assert problem.path == ("recipe", "rates", 1)
    assert "must not be combined with the optimizers lamb, sgd, tvlars" in problem.message
    model, topology = model_of("pit")
    recipe = Recipe.model_validate({"optimizer": "sgd", "rates": raw["rates"][1]})
    with pytest.raises(UnsuitableRatesError, match="the optimizer is 'sgd'"):
        prepare_rates(model, recipe, topology, TASK)


def test_a_base_width_that_the_heads_cannot_share_is_refused() -> None:
    model, topology = model_of("autoformer")
    recipe = Recipe.model_validate({"rates": {"name": "mup", "base_width": 15}})
    with pytest.raises(UnsuitableRatesError, match=r"must exist with the width 15, but: .* multiple of 2"):
        prepare_rates(model, recipe, topology, TASK)


def test_rules_can_be_searched_and_combined() -> None:
    raw = {"rates": ["uniform", [{"name": "mup", "base_width": 16}, {"name": "layer-decay", "decay": [0.5, 0.9]}]]}
    space = parse_recipe_space(raw)
    point = {
        "recipe.rates": "mup+layer-decay",
        "recipe.rates.mup+layer-decay.mup.base_width": 16,
        "recipe.rates.mup+layer-decay.layer-decay.decay": 0.9,
    }
    assert {dimension.name for dimension in space.dimensions} == set(point)
    assert [choice.name for choice in space.decode(point).rates] == ["mup", "layer-decay"]
    assert space.decode({"recipe.rates": "uniform"}).rates == Recipe().rates
