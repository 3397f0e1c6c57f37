"""PiT as a torch module, against torch's own transformer layers."""

import pytest
import torch
from torch import nn

from search_spaces.base import ImageTask
from search_spaces.pit import PitSpace
from tests.rounding import assert_rounded, path_length
from tests.unit.reference import reference_block
from trainers.models.pit import build_pit

TASK = ImageTask(image_size=32, in_channels=3, num_classes=5)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_computes_what_the_benchmark_says() -> None:
    model = build_pit(PitSpace.parse("1,2|2,2|1,4|2,6,8"), TASK, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    grid = nn.functional.conv2d(IMAGES, model.patch_embed.weight, model.patch_embed.bias, stride=4) + model.position
    class_token = model.class_token.repeat(4, 1, 1)
    for index, (stage, side) in enumerate(zip(model.stages, (7, 4, 2), strict=True)):
        if index:
            pool = model.pools[index - 1]
            width = grid.shape[1]
            grid = nn.functional.conv2d(grid, pool.conv.weight, pool.conv.bias, stride=2, padding=1, groups=width)
            class_token = class_token @ pool.fc.weight.T + pool.fc.bias
        assert grid.shape[2:] == (side, side)
        tokens = torch.cat([class_token, grid.flatten(2).mT], 1)
        for block in stage:
            tokens = reference_block(block)(tokens)
        class_token, grid = tokens[:, :1], tokens[:, 1:].mT.reshape(4, -1, side, side)
    num_terms = path_length(model, num_tokens=50)
    assert_rounded(model.forward_features(IMAGES), class_token[:, 0], num_terms)
    normed = nn.functional.layer_norm(class_token[:, 0], (24,), model.norm.weight, model.norm.bias, eps=1e-6)
    assert_rounded(model(IMAGES), normed @ model.head.weight.T + model.head.bias, num_terms)


def test_initial_weights_have_the_documented_distributions() -> None:
    model = build_pit(PitSpace.parse("1,2|1,4|1,4|4,32,8"), TASK)
    state = model.state_dict()
    for name, fan_in in {
        "patch_embed.weight": 3 * 8 * 8,
        "pools.0.conv.weight": 3 * 3,
        "pools.1.fc.weight": 128,
        "stages.1.0.attn.qkv.weight": 128,
        "stages.2.0.mlp.fc2.bias": 512,
        "head.weight": 128,
    }.items():
        bound = fan_in**-0.5
        assert 0.9 * bound < state[name].abs().max() <= bound, name
        assert state[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name
    for name in ("position", "class_token"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.2), name
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
