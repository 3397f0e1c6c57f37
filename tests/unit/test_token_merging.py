"""Merging of tokens, compared with its definition, in every space."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plugins.protocols import Signal, is_curve_model
from plugins.registry import create, load, parse_topology
from search_spaces.base import ImageTask
from search_spaces.costs import num_merged
from search_spaces.options import BlockOptions
from trainers.models.block_options import OptionalParts
from trainers.models.blocks import SelfAttention, draw_keep_factors
from trainers.models.token_merging import TokenMerging, merge_similar
from trainers.tasks.scoring import make_candidate
from trainers.training.block_signals import watched_blocks

TASK = ImageTask(image_size=64, in_channels=1, num_classes=3)
IMAGES = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
TOPOLOGIES = {
    "as-vit": "as-vit:4,8,2|2,4,2|2,2,2|2,1,2,2|16,8|merged_tokens=1",
    "autoformer": "autoformer:2,2|2,2|1,2|8,16|merged_tokens=4",
    "pit": "pit:1,1|1,2|2,2|2,8,8|sigmoid_attention,merged_tokens=3",
}
SPACES = sorted(TOPOLOGIES)


def build(space: str, *, seed: int = 0, options: str = "", **settings: Any) -> Any:
    topology = parse_topology(TOPOLOGIES[space] + options)
    return load("models", space)(topology, TASK, generator=torch.Generator().manual_seed(seed), **settings)


def merged_by_definition(
    tokens: list[Tensor], sizes: list[float], keys: list[Tensor], count: int, *, num_kept: int
) -> tuple[list[Tensor], list[float]]:
    """The tokens of one image, merged one after another."""
    places = range(len(tokens))
    partner, similarity = {}, {}
    for place in places[::2]:
        found = {
            other: float(keys[place] @ keys[other] / keys[place].norm() / keys[other].norm()) for other in places[1::2]
        }
        partner[place] = max(found, key=found.__getitem__)
        similarity[place] = found[partner[place]] if place >= num_kept else -math.inf
    gone = sorted(similarity, key=similarity.__getitem__, reverse=True)[:count]
    sums = {place: tokens[place] * sizes[place] for place in places}
    totals = dict(enumerate(sizes))
    for place in gone:
        sums[partner[place]] = sums[partner[place]] + sums.pop(place)
        totals[partner[place]] += totals.pop(place)
    left = [place for place in places[::2] if place in sums] + list(places[1::2])
    return [sums[place] / totals[place] for place in left], [totals[place] for place in left]


@pytest.mark.parametrize(("count", "num_kept"), [(1, 0), (4, 0), (4, 1), (3, 1)])
def test_similar_tokens_are_merged_as_defined(count: int, num_kept: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    keys = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 4, (2, 9), generator=generator).double()
    found, found_sizes = merge_similar(tokens, sizes, keys, count, num_kept=num_kept)
    for image in range(2):
        expected, expected_sizes = merged_by_definition(
            list(tokens[image]), sizes[image].tolist(), list(keys[image]), count, num_kept=num_kept
        )
        torch.testing.assert_close(found[image], torch.stack(expected), rtol=1e-12, atol=1e-12)
        assert found_sizes[image].tolist() == expected_sizes
    if num_kept:
        assert torch.equal(found[:, 0], tokens[:, 0] * sizes[:, :1] / sizes[:, :1])


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_token_counts_in_attention_as_often_as_it_stands_for_tokens(sigmoid: bool) -> None:
    """Attention to merged tokens of sizes 1, 2 and 3 is attention to six tokens, some of them equal."""
    options = BlockOptions(sigmoid_attention=sigmoid)
    attention = SelfAttention(6, heads=2, head_width=3, parts=OptionalParts(options))
    attention.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in attention.parameters():
        parameter.normal_(std=0.5, generator=generator)
    tokens = torch.randn(1, 3, 6, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    merging = TokenMerging(1, num_kept=0)
    merging.sizes = sizes
    repeated = tokens.repeat_interleave(torch.tensor([1, 2, 3]), 1)
    firsts = [0, 1, 3]
    torch.testing.assert_close(attention(tokens, merging), attention(repeated)[:, firsts], rtol=1e-12, atol=1e-12)
    shares = attention.attention_weights(tokens, merging)
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]), rtol=1e-12, atol=1e-12)
    each = attention.attention_weights(repeated)[:, :, firsts][..., firsts] * sizes
    torch.testing.assert_close(shares, each, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merging.mean(tokens), repeated.mean(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("space", SPACES)
def test_costs_are_exact_and_lower_than_without_merging(space: str, size: int) -> None:
    task = TASK.model_copy(update={"image_size": size})
    topology = parse_topology(TOPOLOGIES[space])
    model = load("models", space)(topology, task).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 1, size, size))
    costs = load("spaces", space).costs(topology, task)
    assert costs.macs == counter.get_total_flops() / 2
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    plain = topology.model_copy(update={"options": topology.options.model_copy(update={"merged_tokens": 0})})  # type: ignore[attr-defined]
    assert costs.macs < load("spaces", space).costs(plain, task).macs


def test_no_more_than_half_of_the_tokens_are_merged() -> None:
    assert [num_merged(tokens, 3, num_kept=1) for tokens in (1, 2, 3, 4, 5, 7, 100)] == [0, 0, 1, 1, 2, 3, 3]
    assert [num_merged(tokens, 3, num_kept=0) for tokens in (1, 2, 3, 7)] == [0, 1, 1, 3]


@pytest.mark.parametrize("space", SPACES)
def test_each_image_is_merged_on_its_own_also_in_a_pack(space: str) -> None:
    models = [build(space, seed=seed) for seed in (0, 1)]
    num_blocks = sum(parse_topology(TOPOLOGIES[space]).depths)  # type: ignore[attr-defined]
    keep = draw_keep_factors(num_blocks, len(IMAGES), rate=0.5, generator=torch.Generator().manual_seed(1))
    alone = [model(IMAGES, generator=keep) for model in models]
    torch.testing.assert_close(models[0](IMAGES[1:2], generator=keep[..., 1:2]), alone[0][1:2], rtol=1e-4, atol=1e-6)
    parameters, _ = stack_module_state(models)

    def forward(weights: dict[str, Tensor]) -> Any:
        return functional_call(models[0], weights, (IMAGES,), {"generator": keep})

    logits = vmap(forward)(parameters)
    torch.testing.assert_close(logits, torch.stack(alone), rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    expected = torch.autograd.grad(alone[1].square().sum(), list(models[1].parameters()))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient[1], other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("space", SPACES)
def test_training_lowers_the_loss(space: str) -> None:
    model = build(space)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(IMAGES), torch.arange(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("space", SPACES)
def test_curves_are_left_to_autograd_and_scored(space: str) -> None:
    assert not is_curve_model(build(space))
    candidate = make_candidate(parse_topology(TOPOLOGIES[space]), IMAGES, TASK, seed=0, labels=torch.arange(3))
    proxy = create("proxies", "extrinsic-curvature", {"repeats": 1})
    assert math.isfinite(proxy.score(candidate).value)


@pytest.mark.parametrize("name", ["attention-entropy", "az-trainability"])
@pytest.mark.parametrize("space", SPACES)
def test_scores_that_compare_tokens_say_that_some_are_gone(space: str, name: str) -> None:
    candidate = make_candidate(parse_topology(TOPOLOGIES[space]), IMAGES, TASK, seed=0, labels=torch.arange(3))
    with pytest.raises(ValueError, match=f"{name} needs the same tokens .* merges tokens. Set"):
        create("proxies", name).score(candidate)


def test_signals_weigh_merged_tokens() -> None:
    model = build("autoformer").eval()
    with torch.no_grad(), watched_blocks(model, frozenset({Signal.ATTENTION_ENTROPY})) as watched:
        model(IMAGES)
    entropies, tokens = [], model.patch_embed(IMAGES).flatten(2).transpose(1, 2)
    merging = TokenMerging(4, num_kept=1)
    tokens = torch.cat([model.class_token.expand(3, -1, -1), tokens], 1) + model.position
    for block in model.blocks:
        with torch.no_grad():
            weights = block.attn.attention_weights(block.norm1(tokens), merging).double()
            entropies.append(float(torch.special.entr(weights).sum(-1).mean()) / math.log(weights.shape[-1]))
            tokens = block(tokens, merging=merging)
    assert watched.signals()[Signal.ATTENTION_ENTROPY] == pytest.approx(sum(entropies) / 3, rel=1e-6)


@pytest.mark.parametrize(
    "part", ["merged_tokens", "merged_tokens=0", "merged_tokens=x", "merged_tokens=12345", "grn=1"]
)
def test_a_wrong_number_is_refused_with_its_place(part: str) -> None:
    with pytest.raises(ValueError, match=r"at character 10 of .* must be written .*, but got"):
        parse_topology(f"autoformer:2,2|8,16|{part}")
