"""AutoFormer as a torch module, against torch's own transformer layers."""

import pytest
import torch
from torch import Tensor, nn

from search_spaces.autoformer import AutoFormerSpace
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded, path_length
from tests.unit.reference import reference_block
from trainers.models.autoformer import AutoFormer, build_autoformer

TASK = ImageTask(image_size=32, in_channels=3, num_classes=5)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained_like(text: str) -> AutoFormer:
    """With weights, biases and norms that all matter."""
    model = build_autoformer(AutoFormerSpace.parse(text), TASK, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def test_it_computes_what_the_benchmark_says() -> None:
    model = trained_like("2,1.5|3,2|12,8")
    patches = nn.functional.conv2d(IMAGES, model.patch_embed.weight, model.patch_embed.bias, stride=8)
    tokens = torch.cat([model.class_token.repeat(4, 1, 1), patches.flatten(2).mT], 1) + model.position
    assert tokens.shape == (4, 17, 12)
    for block in model.blocks:
        tokens = reference_block(block)(tokens)
    num_terms = path_length(model, num_tokens=17)
    assert_rounded(model.forward_features(IMAGES), tokens[:, 1:].mean(1), num_terms)
    normed = nn.functional.layer_norm(tokens, (12,), model.norm.weight, model.norm.bias, eps=1e-6)
    logits = normed[:, 1:].mean(1) @ model.head.weight.T + model.head.bias
    assert_rounded(model(IMAGES), logits, num_terms)


def test_heads_of_a_fixed_width_may_have_more_channels_together_than_the_stream() -> None:
    model = trained_like("3,2|12,8,8")
    block = model.blocks[0]
    assert block.attn.qkv.weight.shape == (3 * 3 * 8, 12)
    assert block.attn.proj.weight.shape == (12, 3 * 8)
    tokens = torch.randn(1, 5, 12, dtype=torch.float64)
    query, key, value = block.attn.qkv(tokens).view(5, 3, 3, 8).permute(1, 2, 0, 3)
    weights = (query @ key.mT / 8**0.5).softmax(-1)
    mixed = (weights @ value).transpose(0, 1).reshape(1, 5, 24)
    assert_rounded(block.attn(tokens), block.attn.proj(mixed), path_length(block.attn, num_tokens=5))


def test_initial_weights_have_the_documented_distributions() -> None:
    model = build_autoformer(AutoFormerSpace.parse("3,4|3,4|192,16"), TASK)
    state = model.state_dict()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "head.weight", "position", "class_token"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.15), name
    assert all(not value.any() for name, value in state.items() if name.endswith("bias") and "patch_embed" not in name)
    bound = (3 * 16 * 16) ** -0.5
    assert 0.95 * bound < state["patch_embed.weight"].abs().max() <= bound
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


def test_drop_path_rises_with_the_block() -> None:
    model = build_autoformer(AutoFormerSpace.parse("|".join(["1,1"] * 5) + "|2,32"), TASK, drop_path=0.8)
    kept: list[float] = []

    def note(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        kept.append(float((args[1] > 0).float().mean()))

    for block in model.blocks:
        block.register_forward_pre_hook(note)
    images = torch.zeros(2000, 3, 32, 32)
    model(images, generator=torch.Generator().manual_seed(0))
    assert kept == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=0.03)
