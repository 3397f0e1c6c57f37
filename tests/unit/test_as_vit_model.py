"""As-ViT as a torch module."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded, difference_bound, path_length
from trainers.models.as_vit import AsViT, build_as_vit
from trainers.models.as_vit_layers import PatchMerging, WindowAttention
from trainers.models.blocks import FEW_TOKENS, attend

TASK = ImageTask(image_size=32, in_channels=3, num_classes=5)
TOPOLOGY = AsViTSpace.parse("7,2,3,1|3,2,2,2|4,1,2,1|2,1,3,1|16,12")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _build(seed: int = 0, **settings: object) -> AsViT:
    return build_as_vit(TOPOLOGY, TASK, generator=torch.Generator().manual_seed(seed), **settings)  # type: ignore[arg-type]


def test_logits_and_features_have_their_shapes() -> None:
    model = _build()
    assert model(IMAGES).shape == (4, 5)
    assert model.forward_features(IMAGES).shape == (4, 96)


def test_a_seed_always_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = _build(3).state_dict(), _build(3).state_dict(), _build(4).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.0.weight"], other["head.0.weight"])


def test_weights_in_another_dtype_are_the_same_numbers() -> None:
    plain, double = _build().state_dict(), _build(dtype=torch.float64).state_dict()
    assert all(torch.equal(value.double(), double[name]) for name, value in plain.items())


def test_initial_weights_have_the_documented_distributions() -> None:
    state = build_as_vit(TOPOLOGY.with_size(width=64), TASK).state_dict()
    assert state["stages.3.blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["stages.3.blocks.0.mlp.fc1.bias"].abs().max() == 0
    assert torch.equal(state["norm.weight"], torch.ones(512))
    bound = (3 * 7 * 7) ** -0.5
    assert 0.95 * bound < state["stages.0.embed.proj.weight"].abs().max() <= bound


def test_each_image_is_seen_on_its_own() -> None:
    model = _build().eval()
    with torch.no_grad():
        assert_rounded(model(IMAGES)[2:3], model(IMAGES[2:3]), path_length(model, num_tokens=64))


def test_without_normalization_no_layer_norm_is_left() -> None:
    assert not any(isinstance(module, nn.LayerNorm) for module in _build(normalization=False).modules())


def test_patch_merging_is_unfold_norm_and_linear() -> None:
    tokens = torch.randn(2, 4, 4, 6)
    for kernel in (2, 3, 4):
        merging = PatchMerging(6, 12, kernel=kernel, normalization=False)
        nn.init.normal_(merging.reduction.weight)
        padding = ((kernel - 2) // 2, (kernel - 1) // 2) * 2
        patches = F.unfold(F.pad(tokens.permute(0, 3, 1, 2), padding), kernel, stride=2).transpose(1, 2)
        weight = merging.reduction.weight.view(12, kernel, kernel, 6).permute(0, 3, 2, 1).flatten(1)
        assert_rounded(merging(tokens).flatten(1, 2), patches @ weight.T, 6 * kernel**2)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_attention_stays_within_its_window(split: int) -> None:
    attention = WindowAttention(6, heads=4, split=split)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(1, 4, 4, 6)
    changed = tokens.clone()
    changed[0, 0, 0] += 1.0
    before = attention(tokens)
    unmoved = difference_bound(path_length(attention, 16), torch.float32) * float(before.abs().max())
    moved = (attention(changed) - before).abs().amax(-1)[0] > unmoved
    side = 4 // split
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:side, :side] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("tokens", [FEW_TOKENS, FEW_TOKENS + 1])
def test_attention_of_few_and_of_many_tokens_is_the_same_function(tokens: int) -> None:
    query, key, value = torch.randn(3, 2, 3, tokens, 5)
    weights = (query @ key.transpose(-2, -1) / 5**0.5).softmax(-1)
    assert_rounded(attend(query, key, value), weights @ value, 5 + 2 * tokens)


def test_drop_path_draws_from_the_given_generator_only_in_training() -> None:
    model = _build(drop_path=0.5)

    def logits(seed: int) -> Tensor:
        return model(IMAGES, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    with pytest.raises(ValueError, match=r"drop_path=0\.5 .* must be given a CPU `generator`"):
        model(IMAGES)
    model.eval()
    assert_rounded(model(IMAGES), logits(1), path_length(model, num_tokens=64))


def test_drop_path_keeps_the_mean_of_each_branch_and_rises_with_the_block() -> None:
    model = _build(drop_path=0.8)
    images = torch.zeros(4000, 3, 32, 32)[:, :1, :1, :1]
    factors = model._keep_factors(images, torch.Generator().manual_seed(0))
    kept = [float((one > 0).float().mean()) for one in factors if one is not None]
    assert kept == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=0.03)
    assert [float(one.mean()) for one in factors if one is not None] == pytest.approx([1.0] * 5, abs=0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_impossible_drop_path_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"`drop_path` must lie in \[0, 1\), but got"):
        _build(drop_path=rate)


def test_a_topology_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be built: the image size must be a multiple of 32"):
        build_as_vit(TOPOLOGY, TASK.model_copy(update={"image_size": 40}))


def test_it_learns_to_tell_a_few_images_apart() -> None:
    model = _build()
    labels = torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), labels).backward()
        optimizer.step()
    assert torch.equal(model(IMAGES).argmax(1), labels)
