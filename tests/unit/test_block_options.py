"""Optional parts of blocks, compared with their formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from search_spaces.options import BlockOptions
from tests.rounding import assert_rounded, path_length
from trainers.models.as_vit import build_as_vit
from trainers.models.as_vit_layers import WindowAttention
from trainers.models.block_options import OptionalParts, ResponseNorm, initial_scale
from trainers.models.blocks import Mlp, SelfAttention

TOKENS = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
"""Three images, six tokens, eight channels."""


def drawn(module: nn.Module) -> nn.Module:
    """The module in float64 with every parameter drawn."""
    generator = torch.Generator().manual_seed(1)
    module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.5, generator=generator)
    return module


def parts(**options: bool) -> OptionalParts:
    return OptionalParts(BlockOptions(**options))


def head(attention: SelfAttention, image: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, d) of one head of one image, by its rows of the fused layer."""
    found = []
    for part in range(3):
        start = (part * attention.heads + number) * attention.head_width
        rows = slice(start, start + attention.head_width)
        found.append(TOKENS[image] @ attention.qkv.weight[rows].t() + attention.qkv.bias[rows])
    query, key, value = found
    return query, key, value


def normed(values: Tensor, norm: nn.Module) -> Tensor:
    """Each row minus its mean, over its standard deviation, scaled and shifted."""
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    variance = values.var(-1, correction=0, keepdim=True)
    return (values - values.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-5) * weight + bias


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"sigmoid_attention": True}, {"layer_scale": True}, {}])
def test_attention_is_the_formula_of_its_options(options: dict[str, bool]) -> None:
    attention = SelfAttention(8, heads=2, head_width=3, parts=parts(**options))
    drawn(attention)
    for image in range(3):
        mixed = []
        for number in range(2):
            query, key, value = head(attention, image, number)
            if attention.query_norm is not None:
                assert attention.key_norm is not None
                query, key = normed(query, attention.query_norm), normed(key, attention.key_norm)
            scores = query @ key.t() / math.sqrt(3)
            if attention.is_sigmoid:
                weights = 1 / (1 + torch.exp(-(scores - math.log(6))))
            else:
                weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            mixed.append(weights @ value)
        expected = torch.cat(mixed, -1) @ attention.proj.weight.t() + attention.proj.bias
        if attention.scale is not None:
            expected = expected * attention.scale.gamma
        assert_rounded(attention(TOKENS)[image], expected, path_length(attention, 6), condition=4)


def test_sigmoid_attention_in_padded_windows_counts_the_real_tokens() -> None:
    attention = WindowAttention(8, heads=2, split=2, parts=parts(sigmoid_attention=True))
    drawn(attention)
    grid = torch.randn(1, 3, 3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = attention(grid)  # windows of 2 x 2 tokens; the last one has a single real token
    corner = WindowAttention(8, heads=2, split=1, parts=parts(sigmoid_attention=True)).double()
    corner.load_state_dict(attention.state_dict())
    assert_rounded(found[:, 2:, 2:], corner(grid[:, 2:, 2:]), path_length(attention, 4))
    assert_rounded(found[:, :2, 2:], corner(grid[:, :2, 2:]), path_length(attention, 4))
    assert_rounded(found[:, :2, :2], corner(grid[:, :2, :2]), path_length(attention, 4))


def test_the_shares_of_sigmoid_attention_add_up_to_one() -> None:
    attention = SelfAttention(8, heads=2, head_width=3, parts=parts(sigmoid_attention=True))
    drawn(attention)
    shares = attention.attention_weights(TOKENS)
    assert_rounded(shares.sum(-1), torch.ones_like(shares[..., 0]), 12)
    weights = torch.sigmoid(attention.attention_logits(TOKENS) - math.log(6))
    assert_rounded(shares * weights.sum(-1, keepdim=True), weights, 12)


def test_response_norm_is_the_formula_and_at_first_the_identity() -> None:
    norm, hidden = ResponseNorm(8).double(), TOKENS
    assert torch.equal(norm(hidden), hidden)
    drawn(norm)
    expected = torch.empty_like(hidden)
    for image in range(3):
        lengths = [math.sqrt(sum(float(value) ** 2 for value in hidden[image, :, channel])) for channel in range(8)]
        for channel in range(8):
            relative = lengths[channel] / (sum(lengths) / 8 + 1e-6)
            row = hidden[image, :, channel]
            expected[image, :, channel] = row + norm.gamma[channel] * row * relative + norm.beta[channel]
    torch.testing.assert_close(norm(hidden), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm(hidden.view(3, 2, 3, 8)).view(3, 6, 8), expected, rtol=1e-12, atol=1e-12)


def test_response_norm_acts_on_the_hidden_channels() -> None:
    mlp = Mlp(8, 16, parts=parts(grn=True, layer_scale=True))
    drawn(mlp)
    assert mlp.grn is not None
    assert mlp.scale is not None
    hidden = mlp.grn(nn.functional.gelu(TOKENS @ mlp.fc1.weight.t() + mlp.fc1.bias))
    expected = (hidden @ mlp.fc2.weight.t() + mlp.fc2.bias) * mlp.scale.gamma
    assert_rounded(mlp(TOKENS), expected, path_length(mlp, 6))


@pytest.mark.parametrize(
    ("num_blocks", "scale"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (100, 1e-6)]
)
def test_layer_scales_begin_smaller_in_deeper_models(num_blocks: int, scale: float) -> None:
    assert initial_scale(num_blocks) == scale


def test_a_model_counts_its_own_blocks_for_its_layer_scales() -> None:
    task = ImageTask(image_size=32, in_channels=1, num_classes=2)
    for depth, scale in ((1, 0.1), (16, 1e-5)):
        topology = AsViTSpace.parse(f"4,8,2|2,4,2|2,2,2,{depth}|2,1,2|16,4|layer_scale")
        named = dict(build_as_vit(topology, task).named_parameters())
        scales = torch.cat([value.detach() for name, value in named.items() if name.endswith("scale.gamma")])
        assert torch.equal(scales, torch.full_like(scales, scale))


def test_options_leave_the_other_initial_weights_as_they_are() -> None:
    task, text = ImageTask(image_size=32, in_channels=1, num_classes=2), "4,8,2|2,4,2|2,2,2|2,1,2|16,4"
    plain = build_as_vit(AsViTSpace.parse(text), task).state_dict()
    with_all = build_as_vit(AsViTSpace.parse(f"{text}|qk_norm,layer_scale,grn"), task).state_dict()
    assert all(torch.equal(value, with_all[name]) for name, value in plain.items())
    added = {name.rsplit(".", 2)[1] for name in with_all.keys() - plain.keys()}
    assert added == {"query_norm", "key_norm", "scale", "grn"}
